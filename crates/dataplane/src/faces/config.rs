//! Model configurations: `config.pbtxt` to JSON for the control plane, JSON to clients over both faces.

use std::sync::LazyLock;

use miette::Diagnostic;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
};

use crate::error::{Error, Result};
use crate::framing;
use crate::proto;
use crate::protobuf::write_field;
use crate::tensor::ModelSpec;

/// Deeper than any configuration, far less than the stack: the text parser recurses.
const MAX_DEPTH: usize = 100;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(proto::DESCRIPTORS).expect("the descriptors were compiled with this crate")
});

fn message_type(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(&format!("inference.{name}")).expect("only our own messages are asked for")
}

fn to_json(message: &DynamicMessage, skip_defaults: bool) -> Result<String> {
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(false)
        .skip_default_fields(skip_defaults);
    let mut text = Vec::new();
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut text), &options)
        .map_err(|error| Error::internal(format!("cannot write a message as JSON: {error}")))?;
    Ok(String::from_utf8(text).expect("JSON is text"))
}

/// Reads a `config.pbtxt`: JSON text with the fields that it sets. An error names the line and shows it.
pub fn parse_model_config(text: &str) -> Result<String> {
    let mut depth = 0_usize;
    for (offset, byte) in text.bytes().enumerate() {
        match byte {
            b'{' | b'<' => depth += 1,
            b'}' | b'>' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(mistake(
                text,
                text[..offset].matches('\n').count() + 1,
                &format!("nested more than {MAX_DEPTH} levels deep"),
            ));
        }
    }
    let complete = with_colons(text);
    let message =
        DynamicMessage::parse_text_format(message_type("ModelConfig"), &complete).map_err(|error| {
            let label = error.labels().and_then(|mut labels| labels.next());
            let offset = label.map_or(complete.len(), |label| label.offset());
            // At the end of the text, the last line that says something is the one to show.
            let end = complete.trim_end().len();
            let number = complete.get(..offset.min(end)).map_or(1, |before| before.matches('\n').count() + 1);
            mistake(text, number, &error.to_string().replace("inference.", ""))
        })?;
    to_json(&message, true)
}

#[cold]
fn mistake(text: &str, number: usize, what: &str) -> Error {
    let line = text.lines().nth(number - 1).unwrap_or_default().trim();
    Error::invalid(format!("line {number}: {what}, in `{line}`"))
}

/// Writes `input [ { .. } ]`, as nearly every such file does, with the colon that the parser insists on.
fn with_colons(text: &str) -> String {
    let mut complete = String::with_capacity(text.len() + 16);
    let (mut quote, mut is_escaped, mut is_comment, mut name_end) = (None, false, false, None);
    for letter in text.chars() {
        if is_comment {
            is_comment = letter != '\n';
        } else if quote.is_some() {
            quote = quote.filter(|end| is_escaped || *end != letter);
            is_escaped = letter == '\\' && !is_escaped;
        } else {
            match (letter, name_end) {
                ('[', Some(end)) => complete.insert(end, ':'),
                ('#', _) => is_comment = true,
                ('"' | '\'', _) => quote = Some(letter),
                _ => {}
            }
            if letter.is_alphanumeric() || letter == '_' {
                name_end = Some(complete.len() + letter.len_utf8());
            } else if !letter.is_whitespace() && !is_comment {
                name_end = None;
            }
        }
        complete.push(letter);
    }
    complete
}

fn message(spec: &ModelSpec) -> Result<DynamicMessage> {
    let mut text = serde_json::Deserializer::from_str(&spec.config);
    // The control plane may be newer than this schema.
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    DynamicMessage::deserialize_with_options(message_type("ModelConfig"), &mut text, &options).map_err(
        |error| Error::internal(format!("the configuration of model '{}' is broken: {error}", spec.name)),
    )
}

/// `/config`.
pub(super) fn json(spec: &ModelSpec) -> Result<String> {
    to_json(&message(spec)?, false)
}

/// `ModelConfig`: a `ModelConfigResponse`, whose only field is the configuration.
pub(super) fn grpc(spec: &ModelSpec) -> Result<Vec<u8>> {
    let config = message(spec)?.encode_to_vec();
    let mut buffer = framing::begin(config.len() + 8);
    write_field(1, &config, &mut buffer);
    Ok(buffer)
}
