"""Every exception that lrai raises, and the one way to write its message.

LraiError                      internal
├── ConfigError                invalid        a setting, a flag or a file of settings is wrong
├── RepositoryError            invalid        a model's folder or its configuration is wrong
│   └── ModelNotFoundError     not_found      no model of that name is on disk
├── ModelLoadError             invalid        a backend refused the model, or died loading it
├── InvalidInputError          invalid        inputs do not fit the model's signature
├── InferenceError             internal       a loaded model failed on an input that fits
├── UnsupportedError           unsupported    this platform, provider or feature is not there
├── UnavailableError           unavailable    it exists, but cannot answer now
├── DataPlaneError             internal       the native data plane refused a call
└── VerifierError              invalid        a model, property or certificate cannot be used
    ├── PropertyError          invalid        a property is malformed, or does not fit its model
    └── UnsupportedOperatorError  unsupported  the verifier has no bounds for a node of the model

`code` is protocol-neutral; the data plane alone knows the HTTP and gRPC numbers behind it.
"""

from typing import ClassVar, Literal

Code = Literal["internal", "invalid", "not_found", "unsupported", "unavailable"]


class LraiError(Exception):
    """What went wrong, in one sentence with the value in it, and a hint what to change."""

    code: ClassVar[Code] = "internal"

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep the sentence; `str()` of the error appends ` hint: ...` when there is one."""
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} hint: {self.hint}" if self.hint else self.message


class ConfigError(LraiError):
    """A setting has a value that cannot be used; the start stops."""

    code = "invalid"


class RepositoryError(LraiError):
    """A model's folder, its name or its configuration is wrong; the model is not served."""

    code: ClassVar[Code] = "invalid"


class ModelNotFoundError(RepositoryError):
    """No model of that name is in the repository."""

    code = "not_found"


class ModelLoadError(LraiError):
    """A backend could not load the model, or the actor that tried has died."""

    code = "invalid"


class InvalidInputError(LraiError):
    """Inputs that do not fit the model's signature: names, datatypes, shapes."""

    code = "invalid"


class InferenceError(LraiError):
    """A loaded model failed on an input that fits its signature."""


class UnsupportedError(LraiError):
    """This platform, provider or feature is not there; the hint says what to install."""

    code = "unsupported"


class UnavailableError(LraiError):
    """It exists but cannot answer now, for example a server that nothing listens for."""

    code = "unavailable"


class DataPlaneError(LraiError):
    """The native data plane refused a call, for example because a port is taken."""


class VerifierError(LraiError):
    """A model or a certificate that the verifier cannot use: unreadable, or not what it claims."""

    code: ClassVar[Code] = "invalid"


class PropertyError(VerifierError):
    """A property is malformed, or names inputs and outputs that its model does not have."""

    code = "invalid"


class UnsupportedOperatorError(VerifierError):
    """The verifier has no sound bounds for an operator, an attribute or a type; names the node."""

    code = "unsupported"
