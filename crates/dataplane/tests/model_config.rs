//! `config.pbtxt`: what people write into it, and what the schema behind it is.
#![allow(clippy::unwrap_used)]

use lrai_dataplane::error::Code;
use lrai_dataplane::faces::config::parse_model_config;
use lrai_dataplane::proto::DESCRIPTORS;
use prost_reflect::{Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Value, json};

fn parse(text: &str) -> Value {
    serde_json::from_str(&parse_model_config(text).unwrap()).unwrap()
}

fn mistake(text: &str) -> String {
    let error = parse_model_config(text).unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument);
    error.message.into_owned()
}

#[test]
fn a_configuration_becomes_json_with_what_it_sets() {
    let text = r#"
        # a comment { with braces
        name: "resnet" platform: 'onnxruntime_onnx'
        max_batch_size: 8
        input [
          { name: "x" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, -1, 0x10 ] reshape { shape: [ ] } },
          { name: "y", data_type: TYPE_STRING; dims: 1 dims: 2 optional: true }
        ]
        output { name: "p" data_type: 11 dims: [ 1000 ] label_filename: "lab" "els.txt" }
        instance_group [ { count: 2 kind: KIND_CPU } ]
        dynamic_batching < preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 18446744073709551615
          priority_queue_policy { key: 1 value: { timeout_action: DELAY } } >
        parameters { key: "intra_op_thread_count" value: { string_value: "2" } }
        parameters: { key: "b" value { string_value: "a \"quoted\" \n \x41 line" } }
        version_policy: { specific { versions: [ 1, 3 ] } }
        optimization { execution_accelerators { cpu_execution_accelerator : [ { name : "openvino" } ] } }
        model_warmup [ { name: "w" inputs { key: "x" value { zero_data: true } } } ]
    "#;
    assert_eq!(
        parse(text),
        json!({
            "name": "resnet", "platform": "onnxruntime_onnx", "max_batch_size": 8,
            "input": [
                { "name": "x", "data_type": "TYPE_FP32", "format": "FORMAT_NCHW", "dims": [3, -1, 16], "reshape": {} },
                { "name": "y", "data_type": "TYPE_STRING", "dims": [1, 2], "optional": true },
            ],
            "output": [{ "name": "p", "data_type": "TYPE_FP32", "dims": [1000], "label_filename": "labels.txt" }],
            "instance_group": [{ "count": 2, "kind": "KIND_CPU" }],
            "dynamic_batching": {
                "preferred_batch_size": [4, 8],
                "max_queue_delay_microseconds": 18_446_744_073_709_551_615_u64,
                "priority_queue_policy": { "1": { "timeout_action": "DELAY" } },
            },
            "parameters": {
                "intra_op_thread_count": { "string_value": "2" },
                "b": { "string_value": "a \"quoted\" \n A line" },
            },
            "version_policy": { "specific": { "versions": [1, 3] } },
            "optimization": { "execution_accelerators": { "cpu_execution_accelerator": [{ "name": "openvino" }] } },
            "model_warmup": [{ "name": "w", "inputs": { "x": { "zero_data": true } } }],
        })
    );
}

#[test]
fn an_empty_text_sets_nothing() {
    for text in ["", "  \n", "# only a comment"] {
        assert_eq!(parse(text), json!({}));
    }
}

#[test]
fn an_empty_message_is_set() {
    assert_eq!(parse("dynamic_batching { }"), json!({ "dynamic_batching": {} }));
}

#[test]
fn a_list_needs_no_colon() {
    let text = "input [ { name: \"a [\" dims [ 1, 2 ] }, # [ no list\n { name: 'b\\'[' } ]\ninstance_group[{ count: 2 }]";
    let expected = json!({
        "input": [{ "name": "a [", "dims": [1, 2] }, { "name": "b'[" }],
        "instance_group": [{ "count": 2 }],
    });
    assert_eq!(parse(text), expected);
}

#[test]
fn a_mistake_after_a_list_is_told_with_its_line() {
    let told = mistake("input [\n{ name: \"x\" }\n]\nmax_batchsize: 4");
    assert!(told.starts_with("line 4: field 'max_batchsize' not found"), "{told}");
}

#[test]
fn a_mistake_is_told_with_its_line() {
    for (text, expected) in [
        (
            "name: \"m\"\nmax_batchsize: 4\n",
            "line 2: field 'max_batchsize' not found for message 'ModelConfig', in `max_batchsize: 4`",
        ),
        (
            "input {\n  name: \"x\"\n  dim: 3\n}",
            "line 3: field 'dim' not found for message 'ModelInput', in `dim: 3`",
        ),
        (
            "max_batch_size: \"four\"",
            "line 1: expected an integer, but found '\"four\"', in `max_batch_size: \"four\"`",
        ),
        (
            "\n\nmax_batch_size: 3000000000",
            "line 3: expected value to be a signed 32-bit integer, but the value 3000000000 is out of range",
        ),
        ("input { data_type: FP32 }", "line 1: value 'FP32' was not found for enum 'DataType'"),
        ("name: \"a\"\nname: \"b\"", "line 2: 'name' is already set"),
        (
            "dynamic_batching { }\nensemble_scheduling { }",
            "line 2: a value is already set for oneof 'scheduling_choice'",
        ),
        (
            "input {\n  name: \"x\"\n",
            "line 2: expected '}' or a field name, but reached end of input, in `name: \"x\"`",
        ),
        ("name: \"m", "line 1: "),
        ("name \"m\"", "line 1: expected ':' or a message value, but found '\"m\"'"),
    ] {
        let told = mistake(text);
        assert!(told.starts_with(expected), "{told}");
    }
}

#[test]
fn nesting_cannot_exhaust_the_stack() {
    let deep = "[x/inference.ModelConfig] { ".repeat(100_000);
    assert!(mistake(&deep).starts_with("line 1: nested more than 100 levels deep"));
}

/// Every line of the table: `Message.field number [repeated] type [oneof name]`, `Enum.VALUE number value`,
/// `Service.Method Request Response streams`.
#[test]
fn the_schema_is_the_one_that_clients_were_compiled_against() {
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let mut lines = Vec::new();
    pool.all_messages().for_each(|message| describe_message(&message, &mut lines));
    pool.all_enums().for_each(|kind| describe_enum(&kind, &mut lines));
    for service in pool.services() {
        for method in service.methods() {
            lines.push(format!(
                "{}.{} {} {} {}{}",
                service.name(),
                method.name(),
                local(method.input().full_name()),
                local(method.output().full_name()),
                u8::from(method.is_client_streaming()),
                u8::from(method.is_server_streaming()),
            ));
        }
    }
    lines.sort();
    let expected: Vec<&str> = include_str!("cases/protobuf.txt").lines().collect();
    assert_eq!(lines.len(), expected.len());
    for (line, expected) in lines.iter().zip(expected) {
        assert_eq!(line, expected);
    }
}

fn local(name: &str) -> &str {
    name.strip_prefix("inference.").unwrap()
}

fn describe_message(message: &MessageDescriptor, lines: &mut Vec<String>) {
    for field in message.fields() {
        lines.push(describe_field(local(message.full_name()), &field));
    }
}

fn describe_field(message: &str, field: &FieldDescriptor) -> String {
    let kind = match field.kind() {
        Kind::Message(message) => local(message.full_name()).to_owned(),
        Kind::Enum(kind) => local(kind.full_name()).to_owned(),
        scalar => format!("{scalar:?}"),
    };
    let repeated = if field.cardinality() == Cardinality::Repeated { "repeated " } else { "" };
    let oneof = field.containing_oneof().map_or(String::new(), |oneof| format!(" oneof {}", oneof.name()));
    format!("{message}.{} {} {repeated}{kind}{oneof}", field.name(), field.number())
}

fn describe_enum(kind: &EnumDescriptor, lines: &mut Vec<String>) {
    for value in kind.values() {
        lines.push(format!("{}.{} {} value", local(kind.full_name()), value.name(), value.number()));
    }
}
