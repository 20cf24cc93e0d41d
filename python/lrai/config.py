"""Every setting of lrai, with its meaning beside it.

A value comes from the default, then a TOML file, then the environment (`LRAI_<SECTION>_<FIELD>`),
then a flag (`--field`); the later one wins. A bad value stops the start with a sentence.
"""

import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

from lrai.core.plain import from_plain
from lrai.errors import ConfigError
from lrai.log import LEVELS

_DURATIONS: Final = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SIZES: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9} | {
    f"{letter}i{end}": 1 << (10 * power)
    for power, letter in enumerate("kmgt", start=1)
    for end in ("", "b")
}
MOST_REPLICAS: Final = 1024
MOST_QUEUED: Final = 1 << 20
"""Each request that may wait takes 32 bytes, whether there are any or not."""
_BOOLEANS: Final = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}


@dataclass(frozen=True)
class Kind:
    """How a setting is written: a word for the help, the reader of its text, and an example."""

    word: str
    read: Callable[[str], object]
    example: str


def _read_scaled(text: str, units: Mapping[str, float], most: float = 1e18) -> float:
    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    value = float(number) * units[text.strip()[len(number) :].strip().lower()]
    if not 0 <= value <= most:
        raise ValueError(text)
    return value


def _within(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ValueError(value)
    return value


def _integer(low: int, high: int = 1 << 31) -> Kind:
    bound = f"a whole number of at least {low}"
    return Kind("INTEGER", lambda text: _within(int(text), low, high), bound)


def _choice(*words: str) -> Kind:
    return Kind(
        "|".join(words), lambda text: words[words.index(text)], "one of " + ", ".join(words)
    )


TEXT: Final = Kind("TEXT", str, "text")
NAMES: Final = Kind(
    "NAME,...",
    lambda text: tuple(name.strip() for name in text.split(",") if name.strip()),
    "names with commas between them",
)
LENGTHS: Final = Kind(
    "LENGTH,...",
    lambda text: tuple(sorted({_within(int(one), 1, 1 << 31) for one in text.split(",") if one})),
    "whole numbers of at least 1 with commas between them",
)
BOOLEAN: Final = Kind("true|false", lambda text: _BOOLEANS[text.strip().lower()], "true or false")
NUMBER: Final = Kind(
    "NUMBER", lambda text: _read_scaled(text, {"": 1.0}), "a number of at least 0, such as 0.2"
)
DURATION: Final = Kind(
    "DURATION",
    lambda text: _read_scaled(text, _DURATIONS, most=1e9),
    "a number with a unit, such as 30s or 20ms",
)
SIZE: Final = Kind(
    "SIZE", lambda text: int(_read_scaled(text, _SIZES)), "a number with a unit, such as 64MiB"
)
PORT: Final = Kind("PORT", lambda text: _within(int(text), 0, 65535), "a number from 0 to 65535")
OPTIONAL_PORT: Final = Kind(
    "PORT|off",
    lambda text: None if text == "off" else PORT.read(text),
    f"{PORT.example}, or off",
)
JOURNAL: Final = Kind(
    "auto|off|sqlite|redis://...",
    lambda text: _one_of(text, ("auto", "off", "sqlite"), ("redis://", "redis+unix://")),
    "auto, off, sqlite or redis://HOST:PORT",
)


def _one_of(text: str, words: tuple[str, ...], prefixes: tuple[str, ...]) -> str:
    if text not in words and not text.startswith(prefixes):
        raise ValueError(text)
    return text


def _setting(default: Any, kind: Kind, **more: str) -> Any:
    return field(default=default, metadata={"kind": kind, **more})


@dataclass(frozen=True)
class GatewayConfig:
    """Where the server listens, and the limits of its data plane."""

    host: str = _setting("127.0.0.1", TEXT)
    """Address to listen on: an IPv4 or IPv6 literal, a name, or unix:/path."""
    http_port: int = _setting(8000, PORT)
    """Port of HTTP/1.1 and HTTP/2; 0 = any free port."""
    grpc_port: int = _setting(8001, PORT)
    """Port of gRPC; 0 = any free port."""
    metrics_port: int | None = _setting(8002, OPTIONAL_PORT)
    """Port of the Prometheus metrics; off = only on the HTTP port."""
    runtime_threads: int = _setting(1, _integer(1, 256))
    """Threads that accept and parse; one serves 50,000 small requests/s."""
    pool_threads: int = _setting(2, _integer(1, 256))
    """Threads for bodies and answers above 64 KB."""
    max_connections: int = _setting(10_000, _integer(1))
    """Most open connections; others wait."""
    max_body_bytes: int = _setting(64 << 20, SIZE)
    """Largest request body, decompressed."""
    max_memory_bytes: int = _setting(1 << 30, SIZE)
    """Most bytes of bodies and answers in memory."""
    header_timeout_s: float = _setting(10.0, DURATION)
    """Time a client has to send its headers."""
    body_timeout_s: float = _setting(30.0, DURATION)
    """Time a client has to send its body."""
    keep_alive_timeout_s: float = _setting(600.0, DURATION)
    """Time a connection may stay open between two requests."""
    tenant_header: str = _setting("", TEXT)
    """Header that names a request's tenant: tenants share each model fairly; empty = no tenants."""
    not_ready_status: str = _setting("400", _choice("400", "503"))
    """Status of /v2/health/ready before ready; KServe wants 503."""


@dataclass(frozen=True)
class RepositoryConfig:
    """Which models are served, and who may change that."""

    path: str = _setting("", TEXT)
    """An .onnx file, a folder of them, or a model repository."""
    model_control_mode: str = _setting("none", _choice("none", "explicit", "poll"))
    """Who changes the served models: nobody, clients (load, unload), or the files themselves."""
    load_model: tuple[str, ...] = _setting((), NAMES)
    """With explicit control: models to load at the start; * = all."""
    poll_secs: float = _setting(15.0, DURATION, flag="--repository-poll-secs")
    """With poll: time between two looks."""
    parallel_loads: int = _setting(4, _integer(1, 256))
    """Models loaded at the same time."""
    strict_readiness: bool = _setting(False, BOOLEAN)
    """Ready only if every model of the start is ready, not merely settled."""
    exit_on_error: bool = _setting(False, BOOLEAN)
    """End when a model of the start fails to load."""


@dataclass(frozen=True)
class ServerConfig:
    """How the process itself behaves."""

    drain_timeout_s: float = _setting(30.0, DURATION)
    """Time that open requests have at the end."""
    state: str = _setting("", TEXT)
    """Folder for what must survive a restart, as what the scheduler learnt; empty = nothing."""

    def state_folder(self) -> Path:
        """Return the folder for what must survive."""
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return Path(self.state or Path(home) / "lrai").absolute()


@dataclass(frozen=True)
class JournalConfig:
    """Where durable requests are kept until they are answered and fetched."""

    place: str = _setting("auto", JOURNAL, flag="--journal")
    """SQLite in the folder of --state, or a database of Redis; auto = sqlite if --state is set."""
    max_bytes: int = _setting(1 << 30, SIZE, flag="--journal-max-bytes")
    """Most bytes of durable requests and their answers; what finds no room is refused."""
    keep_s: float = _setting(3600.0, DURATION, flag="--journal-keep")
    """Time for which an answer can be fetched."""
    patience_s: float = _setting(900.0, DURATION, flag="--journal-patience")
    """Time for which a model may be away before its durable requests fail."""
    webhooks: tuple[str, ...] = _setting((), NAMES, flag="--journal-webhooks")
    """URLs with which webhooks may begin, such as http://10.0.0.7/hooks; empty = none."""


@dataclass(frozen=True)
class LogConfig:
    """What is written about events."""

    format: str = _setting("auto", _choice("auto", "text", "json"), flag="--log-format")
    """Text on a terminal, else JSON; or always one."""
    level: str = _setting("info", _choice(*LEVELS), flag="--log-level")
    """Least serious event that is written."""
    access_log: bool = _setting(False, BOOLEAN)
    """Write one line per request."""


@dataclass(frozen=True)
class ModelConfig:
    """How a model runs: the server's values are defaults, a model's own lrai.toml wins."""

    backend: str = _setting("", TEXT)
    """onnxruntime, python or null; empty = by the model's file."""
    provider: str = _setting("cpu", TEXT)
    """Execution provider of the engine, such as cpu or cuda."""
    replicas: int = _setting(0, _integer(0, MOST_REPLICAS))
    """Processes that serve one version; 0 = one, or what calibration finds to be best."""
    threads: int = _setting(0, _integer(0, 1024))
    """Engine threads per replica; 0 = processors / replicas, 1 for a file below 64 KB, until
    calibration has measured what is best."""
    max_batch_size: int = _setting(64, _integer(0, 1 << 20))
    """Most rows in a batch of a batchable model; 0 = never batch."""
    retry: bool = _setting(True, BOOLEAN)
    """Run a batch again when its process dies; false for side effects."""
    execution_timeout_s: float = _setting(30.0, DURATION)
    """A batch that runs longer is a hang; where shapes are fixed, a shorter limit is learnt."""
    load_timeout_s: float = _setting(600.0, DURATION)
    """A load that takes longer has failed."""
    memory_limit_bytes: int = _setting(0, SIZE, name="memory_limit")
    """Memory of one replica; 0 = half of what the machine grants."""
    max_queue_requests: int = _setting(1024, _integer(1, MOST_QUEUED))
    """Most requests that wait or run."""
    max_queue_bytes: int = _setting(256 << 20, SIZE)
    """Most input bytes that wait or run."""
    max_output_bytes: int = _setting(256 << 20, SIZE)
    """Most output bytes of one batch."""
    padding: Literal["off", "auto", "accept"] = _setting("auto", _choice("off", "auto", "accept"))
    """Pad different lengths into one batch: never, if a check at load passes, or in any case."""
    padding_tolerance: float = _setting(1e-4, NUMBER)
    """Largest change by padding that the check lets pass, relative to the output's scale."""
    length_dimension: str = _setting("", TEXT)
    """The length's name in the graph; empty = the only free dimension behind the batch."""
    mask_inputs: tuple[str, ...] = _setting((), NAMES)
    """Inputs that mark data with 1, beside those with mask in their name."""


@dataclass(frozen=True)
class KnobsConfig:
    """When a batch leaves; all can be set while the server runs."""

    k: int = _setting(0, _integer(0, 1 << 20))
    """Rows that close a batch; 0 = the maximum."""
    tau_s: float = _setting(0.0, DURATION)
    """Age of the oldest row that closes a batch."""
    slack_s: float = _setting(0.001, DURATION)
    """Time kept before a request's deadline."""
    work_conserving: bool = _setting(True, BOOLEAN)
    """Close the batch when a replica is free."""
    edges: tuple[int, ...] = _setting((), LENGTHS)
    """Lengths to which requests are padded; one number = its multiples, none = learnt."""
    token_budget: int = _setting(0, _integer(0))
    """Most rows times padded length of a batch; 0 = no limit."""


@dataclass(frozen=True)
class SchedulerConfig:
    """What a model's knobs are tuned for, unless they are set; a model's own lrai.toml wins."""

    latency_goal_s: float = _setting(0.0, DURATION)
    """p99 over 10 s, from request complete to answer begun; 0 = as fast as possible."""
    cpu_cost: float = _setting(1.0, NUMBER)
    """What a busy processor costs, against five goals of mean latency; 0 = never wait for more."""
    policy: str = _setting(
        "model-based",
        _choice("model-based", "learner", "greedy", "aimd", "fixed-delay", "static"),
    )
    """Who tunes: model-based learns and meets the goal, the others are for comparison."""
    alert_factor: float = _setting(1.5, NUMBER)
    """An alert is raised when p99 over 10 s is above so many goals."""
    slower_by: float = _setting(0.2, NUMBER)
    """A model whose p99 is so much above what it was asks for being tuned again."""
    slower_days: int = _setting(3, _integer(0, 30))
    """Days running before it asks; 0 = never."""
    calibrate: bool = _setting(True, BOOLEAN)
    """Measure in idle time how many replicas and threads suit a model, where they are not set."""
    replica_memory_bytes: int = _setting(256 << 20, SIZE, name="replica_memory")
    """Memory that calibration may spend on a model's replicas beyond the first."""


@dataclass(frozen=True)
class Settings:
    """Everything that `lrai serve` was told."""

    gateway: GatewayConfig = GatewayConfig()
    repository: RepositoryConfig = RepositoryConfig()
    server: ServerConfig = ServerConfig()
    journal: JournalConfig = JournalConfig()
    log: LogConfig = LogConfig()
    model: ModelConfig = ModelConfig()
    knobs: KnobsConfig = KnobsConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    notes: tuple[str, ...] = ()
    """Sentences about settings that were accepted but have no effect; written at the start."""

    def to_json(self) -> str:
        """Return one line that `from_json` reads in another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        return from_plain(cls, json.loads(text))


SECTIONS: Final[Mapping[str, Any]] = {
    one.name: type(one.default) for one in fields(Settings) if one.name != "notes"
}


@dataclass(frozen=True)
class Setting:
    """One field of one section, as help, documentation and error messages show it."""

    section: str
    attribute: str
    name: str
    """The attribute without its unit, because values are written with one."""
    kind: Kind
    default: Any
    flag: str
    """The command line flag: the name alone, where that says enough."""

    @property
    def doc(self) -> str:
        """The text under the field, read from this file: only help and documentation want it."""
        owner = SECTIONS[self.section].__name__
        source = Path(__file__).read_text(encoding="utf-8").partition(f"class {owner}:")[2]
        text = source.partition(f" {self.attribute}: ")[2].split('"""', 2)[1]
        return " ".join(text.split())

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"LRAI_{self.section}_{self.name}".upper()

    def read(self, value: object, source: str) -> object:
        """Read a value from a file, the environment or a flag; `source` names it in the error."""
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        try:
            if isinstance(value, dict):
                raise ValueError(value)
            return self.kind.read(text)
        except (ValueError, KeyError, OverflowError):
            shown = text.rpartition("@")[2] if self.kind is JOURNAL else text  # no password
            message = f"{source} has the value {shown!r}, which cannot be used"
            raise ConfigError(message, hint=f"write {self.kind.example}") from None


def settings_of(*sections: str) -> Iterator[Setting]:
    """Yield every setting of these sections (all when none is named), in order."""
    for section in sections or SECTIONS:
        for one in fields(SECTIONS[section]):
            meta = one.metadata
            name = meta.get("name", one.name.removesuffix("_s"))
            flag = meta.get("flag", "--" + name.replace("_", "-"))
            yield Setting(section, one.name, name, meta["kind"], one.default, flag)


def load_settings(
    flags: Mapping[str, str], environment: Mapping[str, str] = os.environ, file: Path | None = None
) -> Settings:
    """Put defaults, file, environment and flags (by setting name) together."""
    settings = Settings()
    if file is not None:
        settings = overlay(settings, read_toml(file), file)
    for setting in settings_of():
        if setting.variable in environment:
            value = setting.read(environment[setting.variable], setting.variable)
            settings = _with(settings, setting, value)
        if setting.name in flags:
            settings = _with(settings, setting, setting.read(flags[setting.name], setting.flag))
    return settings


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror}"
        raise ConfigError(message, hint="name a file of settings in TOML") from error
    except ValueError as error:
        raise ConfigError(f"{file} is no TOML: {error}", hint="write [section] field") from error


def overlay(settings: Settings, tables: Mapping[str, Any], file: Path, *sections: str) -> Settings:
    """Return the settings with the file's values laid over them; only these sections may occur."""
    known = {(setting.section, setting.name): setting for setting in settings_of(*sections)}
    allowed = sorted({section for section, _ in known})
    for section, table in tables.items():
        if section not in allowed or not isinstance(table, dict):
            raise ConfigError(
                f"{file} has no section [{section}]", hint=f"use {', '.join(allowed)}"
            )
        for name, given in table.items():
            setting, value = known.get((section, name)), given
            bare = known.get((section, name.removesuffix("_ms")))
            if (
                setting is None
                and bare
                and bare.kind is DURATION
                and isinstance(given, int | float)
            ):
                # The unit may stand in the name instead.
                setting, value = bare, f"{given}ms"
            if setting is None:
                from difflib import get_close_matches  # only for a mistake: 0.3 MB

                names = [name for at, name in known if at == section]
                near = get_close_matches(name, names, 1) or names
                message = f"{file} [{section}] has the unknown setting {name!r}"
                raise ConfigError(message, hint=f"did you mean {' or '.join(near)}?")
            settings = _with(settings, setting, setting.read(value, f"{file} [{section}] {name}"))
    return settings


def _with(settings: Settings, setting: Setting, value: object) -> Settings:
    section = replace(getattr(settings, setting.section), **{setting.attribute: value})
    return replace(settings, **{setting.section: section})
