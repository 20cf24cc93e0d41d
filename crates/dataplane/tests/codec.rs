//! The codec against its case files: what a request says, where its elements go, how an answer is written.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod support;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use lrai_dataplane::check::{Checked, Wanted, WantedOutput, check};
use lrai_dataplane::encode::{OutputView, encode};
use lrai_dataplane::error::{Error, Result};
use lrai_dataplane::faces::binary::{parse_binary, parse_raw};
use lrai_dataplane::fill::fill;
use lrai_dataplane::proto::model_infer_request::InferInputTensor;
use lrai_dataplane::proto::{InferTensorContents, ModelInferRequest};
use lrai_dataplane::protobuf;
use lrai_dataplane::request::{InferRequest, parse_json, tag};
use lrai_dataplane::tensor::{DType, ModelSpec, Shape};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde::Deserialize;
use serde_json::{Value, json};

fn models() -> HashMap<String, ModelSpec> {
    let given: HashMap<String, Value> = serde_json::from_str(include_str!("cases/models.json")).unwrap();
    given.into_iter().map(|(name, spec)| (name, support::model_spec(spec))).collect()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2), "half a byte in {hex}");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// A model with one input `x` and one output `y` of that datatype and shape.
fn model_of(datatype: DType, shape: &[i64]) -> ModelSpec {
    let tensor = |name: &str| json!({"name": name, "datatype": datatype, "shape": shape});
    let spec = json!({
        "max_batch_size": 0, "inputs": [tensor("x")], "outputs": [tensor("y")],
    });
    support::model_spec(spec)
}

/// Checks a request and fills each input into room of the promised size.
fn accept(spec: &ModelSpec, request: &InferRequest<'_>) -> Result<(Checked, Vec<Option<Vec<u8>>>)> {
    let checked = check(spec, request)?;
    let filled = checked.sources.iter().zip(&checked.max_bytes).map(|(source, max_bytes)| {
        let Some(source) = *source else { return Ok(None) };
        let mut room = vec![0xaa; *max_bytes];
        let written = fill(&request.inputs[source], &mut room)?;
        let is_text = request.inputs[source].datatype == DType::Bytes;
        assert!(is_text || written == *max_bytes, "only the size of text may be a bound");
        room.truncate(written);
        Ok(Some(room))
    });
    let filled = filled.collect::<Result<_>>()?;
    Ok((checked, filled))
}

/// The elements of the only input of a JSON request.
fn read_one(spec: &ModelSpec, body: &[u8]) -> Result<Vec<u8>> {
    let (_, mut filled) = accept(spec, &parse_json(body)?)?;
    Ok(filled.remove(0).unwrap())
}

/// One request, a face that brings it, and what must come of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestCase {
    case: String,
    model: String,
    /// The JSON head; with `blobs`, in hexadecimal digits, or `head_len` it goes through the binary extension.
    body: Option<String>,
    blobs: Option<String>,
    head_len: Option<usize>,
    /// A body without a head, in hexadecimal digits.
    raw: Option<String>,
    error: Option<String>,
    rows: Option<u32>,
    /// The shape of the first input, where the case is about it.
    shape: Option<Vec<i64>>,
    #[serde(default)]
    filled: Vec<Option<String>>,
    wanted: Option<Vec<(usize, bool, u32)>>,
    #[serde(default)]
    id: String,
    #[serde(default)]
    priority: u64,
    #[serde(default)]
    timeout_us: u64,
}

impl RequestCase {
    fn outcome(&self, spec: &ModelSpec) -> Result<String> {
        let mut body = self.body.clone().unwrap_or_default().into_bytes();
        let head_len = self.head_len.unwrap_or(body.len());
        body.extend(bytes_of(self.blobs.as_deref().unwrap_or_default()));
        let raw = self.raw.as_deref().map(bytes_of);
        let request = match (&raw, &self.blobs, self.head_len) {
            (Some(raw), ..) => parse_raw(raw, spec)?,
            (None, None, None) => parse_json(&body)?,
            _ => parse_binary(&body, head_len)?,
        };
        let (Checked { rows, shapes, wanted, .. }, filled) =
            accept(spec, &request).map_err(|error| tag(&request.id, error))?;
        let shape = self.shape.as_ref().map(|_| request.inputs[0].shape.to_vec());
        for (shape, expected) in shapes.iter().zip(&spec.inputs) {
            let is_open = |shape: &Shape| !spec.is_batched() || expected.shape.is_empty() || shape[0] == 0;
            assert!(shape.as_ref().is_none_or(is_open), "batches are told apart by their rows");
        }
        let filled: Vec<_> = filled.iter().map(|bytes| bytes.as_deref().map(hex_of)).collect();
        let outputs: Vec<_> = wanted.outputs.iter().map(|o| (o.index, o.binary, o.classification)).collect();
        let Wanted { id, priority, timeout_us, .. } = wanted;
        Ok(format!("{rows} {shape:?} {filled:?} {outputs:?} {id:?} {priority} {timeout_us}"))
    }

    fn expected(&self, spec: &ModelSpec) -> String {
        if let Some(error) = &self.error {
            return format!("InvalidArgument: {error}");
        }
        let Self { rows, shape, filled, id, priority, timeout_us, .. } = self;
        let all = (0..spec.outputs.len()).map(|index| (index, self.raw.is_some(), 0));
        let outputs = self.wanted.clone().unwrap_or_else(|| all.collect());
        format!("{} {shape:?} {filled:?} {outputs:?} {id:?} {priority} {timeout_us}", rows.unwrap())
    }
}

#[test]
fn every_request_is_read_or_refused_as_its_case_says() {
    let models = models();
    let cases: Vec<RequestCase> = serde_json::from_str(include_str!("cases/requests.json")).unwrap();
    let failures = cases.iter().filter_map(|case| {
        let spec = &models[&case.model];
        let got = case.outcome(spec).unwrap_or_else(|error| format!("{:?}: {error}", error.code));
        let expected = case.expected(spec);
        (got != expected).then(|| format!("{}\n  expected {expected}\n  got      {got}\n", case.case))
    });
    let failures: Vec<_> = failures.collect();
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.concat());
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputCase {
    shape: Vec<i64>,
    data: String,
}

/// What a replica left, what the client wants of it, and the answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerCase {
    case: String,
    model: String,
    #[serde(default)]
    id: String,
    wanted: Vec<(usize, bool, u32)>,
    outputs: Vec<OutputCase>,
    body: Option<String>,
    blobs: Option<String>,
    error: Option<String>,
}

#[test]
fn every_answer_is_written_as_its_case_says() {
    let models = models();
    let cases: Vec<AnswerCase> = serde_json::from_str(include_str!("cases/answers.json")).unwrap();
    for AnswerCase { case, model, id, wanted, outputs, body, blobs, error } in cases {
        let spec = &models[&model];
        let wanted = wanted.iter();
        let wanted =
            wanted.map(|&(index, binary, classification)| WantedOutput { index, binary, classification });
        let wanted = Wanted { id, outputs: wanted.collect(), ..Wanted::default() };
        let data: Vec<_> = outputs.iter().map(|output| bytes_of(&output.data)).collect();
        let views = spec.outputs.iter().zip(&outputs).zip(&data);
        let views = views.map(|((spec, output), data)| OutputView {
            spec,
            shape: Shape::from_slice(&output.shape),
            data: data.into(),
        });
        let got = match encode(spec, &wanted, &views.collect::<Vec<_>>()) {
            Err(error) => (None, None, Some(format!("{:?}: {error}", error.code))),
            Ok(encoded) => {
                let (head, rest) = encoded.body.split_at(encoded.head_len.unwrap_or(encoded.body.len()));
                let rest = encoded.head_len.map(|_| hex_of(rest));
                (Some(String::from_utf8(head.to_vec()).unwrap()), rest, None)
            }
        };
        assert_eq!(got, (body, blobs, error), "{case}");
    }
}

/// The elements that a gRPC request with these contents brings to a model of that datatype and two elements.
fn read_typed(datatype: DType, contents: InferTensorContents) -> Result<Vec<Option<Vec<u8>>>> {
    let (name, shape, contents) = ("x".into(), vec![2], Some(contents));
    let datatype_name = datatype.name().into();
    let input = InferInputTensor { name, datatype: datatype_name, shape, contents, ..Default::default() };
    let request = ModelInferRequest { model_name: "m".into(), inputs: vec![input], ..Default::default() };
    accept(&model_of(datatype, &[2]), &protobuf::parse(&request)?).map(|(_, filled)| filled)
}

/// Contents with one list.
macro_rules! contents {
    ($list:ident: $values:expr) => {
        InferTensorContents { $list: $values.into_iter().collect(), ..Default::default() }
    };
}

#[test]
fn typed_contents_take_the_place_of_their_datatype() {
    let texts = [Bytes::from_static(b"ab"), Bytes::new()];
    let cases: [(DType, InferTensorContents, &str); 12] = [
        (DType::Bool, contents!(bool_contents: [true, false]), "0100"),
        (DType::Int8, contents!(int_contents: [-128, 127]), "807f"),
        (DType::Int16, contents!(int_contents: [-32768, 1]), "00800100"),
        (DType::Int32, contents!(int_contents: [-1, 1]), "ffffffff01000000"),
        (DType::Int64, contents!(int64_contents: [-1, 1]), "ffffffffffffffff0100000000000000"),
        (DType::Uint8, contents!(uint_contents: [0, 255]), "00ff"),
        (DType::Uint16, contents!(uint_contents: [1, 65535]), "0100ffff"),
        (DType::Uint32, contents!(uint_contents: [1, u32::MAX]), "01000000ffffffff"),
        (DType::Uint64, contents!(uint64_contents: [1, u64::MAX]), "0100000000000000ffffffffffffffff"),
        (DType::Fp32, contents!(fp32_contents: [1.0, -2.5]), "0000803f000020c0"),
        (DType::Fp64, contents!(fp64_contents: [1.0, -2.0]), "000000000000f03f00000000000000c0"),
        (DType::Bytes, contents!(bytes_contents: texts), "02000000616200000000"),
    ];
    for (datatype, contents, expected) in cases {
        assert_eq!(read_typed(datatype, contents).unwrap(), [Some(bytes_of(expected))], "{datatype:?}");
    }
}

#[test]
fn typed_contents_that_do_not_fit_are_refused() {
    let unfit = "unexpected explicit tensor data for input tensor 'x' for model 'm', expected";
    let cases: [(DType, InferTensorContents, &str); 7] = [
        (DType::Int8, contents!(int_contents: [0, 128]), "128 is out of range for INT8 in input 'x'"),
        (
            DType::Uint16,
            contents!(uint_contents: [65536, 0]),
            "65536 is out of range for UINT16 in input 'x'",
        ),
        (
            DType::Fp32,
            contents!(fp32_contents: [1.0]),
            "input byte size mismatch for input 'x' for model 'm'. Expected 8, got 4",
        ),
        (
            DType::Bytes,
            contents!(bytes_contents: [Bytes::new()]),
            "expected 2 string elements for inference input 'x' for model 'm', got 1",
        ),
        (DType::Fp16, contents!(fp32_contents: [1.0, 2.0]), &format!("{unfit} FP16")),
        (DType::Int64, contents!(int_contents: [1, 2]), &format!("{unfit} INT64")),
        (
            DType::Int32,
            InferTensorContents { bool_contents: vec![true], ..contents!(int_contents: [1, 2]) },
            "contents of more than one type for input 'x' for model 'm'",
        ),
    ];
    for (datatype, contents, expected) in cases {
        assert_eq!(read_typed(datatype, contents).unwrap_err().message, expected);
    }
}

#[test]
fn room_that_is_too_small_is_an_error_not_a_panic() {
    let body = br#"{"inputs":[{"name":"x","datatype":"BYTES","shape":[2],"data":["abc","d"]}]}"#;
    let request = parse_json(body).unwrap();
    for size in 0..12 {
        assert!(fill(&request.inputs[0], &mut vec![0; size]).is_err(), "{size} bytes");
    }
    assert_eq!(fill(&request.inputs[0], &mut [0; 12]), Ok(12));
}

#[test]
fn nesting_is_followed_for_a_hundred_levels_and_no_further() {
    let spec = model_of(DType::Fp32, &[1]);
    let data = |levels: usize| {
        let data = format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"data":{data}}}]}}"#)
    };
    let other = |levels: usize| {
        let value = format!("{}{}", r#"{"k":["#.repeat(levels / 2), "]}".repeat(levels / 2));
        data(1).replacen('{', &format!(r#"{{"other":{value},"#), 1)
    };
    assert_eq!(read_one(&spec, data(97).as_bytes()), Ok(vec![0, 0, 128, 63]));
    assert_eq!(read_one(&spec, other(98).as_bytes()), Ok(vec![0, 0, 128, 63]));
    for body in [data(98), data(1_000_000), other(100), other(1_000_000)] {
        let error = read_one(&spec, body.as_bytes()).unwrap_err();
        assert!(error.message.contains("JSON nesting depth exceeds maximum allowed limit (100)"), "{error}");
    }
}

#[test]
fn lists_without_end_are_refused_before_they_fill_the_memory() {
    let many = format!(r#"{{"parameters":{{{}"a":1}}}}"#, r#""a":1,"#.repeat(100_000));
    let error = parse_json(many.as_bytes()).unwrap_err();
    assert!(error.message.contains("more than 65536 entries"), "{error}");
}

#[test]
fn a_long_name_does_not_make_a_long_error() {
    let (id, name) = ("i".repeat(100_000), "é".repeat(100_000));
    let body = format!(r#"{{"id":"{id}","inputs":[{{"name":"{name}","datatype":"BOOL","shape":[]}}]}}"#);
    let request = parse_json(body.as_bytes()).unwrap();
    let error = check(&model_of(DType::Bool, &[]), &request).unwrap_err();
    assert!(error.message.starts_with("unexpected inference input 'éé"), "{error}");
    assert_eq!(error.message.chars().count(), 2048);
    assert_eq!(tag(&request.id, error).message.chars().count(), 2048);
}

#[test]
fn a_named_request_hears_as_well_when_to_come_again() {
    let error = Error::unavailable("full").retry_after(Duration::from_secs(7));
    let tagged = tag("mine", error.clone());
    assert_eq!((&*tagged.message, tagged.retry_after_s), ("[request id: mine] full", 7));
    assert_eq!(tag("", error.clone()), error);
}

/// Bodies that exercise every part of the grammar.
fn bodies() -> Vec<String> {
    let cases: Vec<RequestCase> = serde_json::from_str(include_str!("cases/requests.json")).unwrap();
    cases.into_iter().filter(|case| case.error.is_none()).filter_map(|case| case.body).collect()
}

#[test]
fn every_truncation_of_a_valid_body_is_refused() {
    for body in bodies() {
        let body = body.trim_end().as_bytes();
        for length in 0..body.len() {
            assert!(parse_json(&body[..length]).is_err(), "{}", String::from_utf8_lossy(&body[..length]));
        }
    }
}

/// The scanner as `serde_json` sees a document: null at the top stands for left out, so documents ride in a key.
fn is_json(document: &[u8]) -> bool {
    let body = [br#"{"other":"#, document, b"}"].concat();
    parse_json(&body).is_ok()
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        let list = prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from);
        let map = prop::collection::vec((any::<String>(), inner), 0..8);
        prop_oneof![list, map.prop_map(|entries| entries.into_iter().collect())]
    })
}

/// What JSON is made of, in any order.
fn scraps() -> impl Strategy<Value = Vec<u8>> {
    let scrap = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\"a\"",
        "\"\\n\"",
        "\\u00e9",
        "\"\\ud800\"",
        "null",
        "true",
        "1",
        "-",
        "0",
        "01",
        ".",
        "1.5",
        "e",
        "E+",
        "-0",
        "1e5",
        " ",
        "\n",
        "é",
        "\u{1}",
        "NaN",
        "\"inputs\"",
        "\"data\"",
    ]);
    prop::collection::vec(scrap, 0..12).prop_map(|scraps| scraps.concat().into_bytes())
}

/// A document with one byte changed.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![prop::sample::select(b"[]{},:\"\\0.-+eEtn \n".to_vec()), any::<u8>()];
    (any_json(), any::<prop::sample::Index>(), byte).prop_map(|(value, at, byte)| {
        let mut text = serde_json::to_vec(&value).unwrap();
        let at = at.index(text.len());
        text[at] = byte;
        text
    })
}

/// The same cases in every run; nothing is written beside the sources.
fn steady() -> ProptestConfig {
    ProptestConfig {
        rng_seed: RngSeed::Fixed(20),
        failure_persistence: None,
        cases: 512,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(steady())]

    #[test]
    fn the_scanner_takes_every_document_that_serde_json_writes(value in any_json()) {
        prop_assert!(is_json(&serde_json::to_vec(&value).unwrap()));
        prop_assert!(is_json(&serde_json::to_vec_pretty(&value).unwrap()));
    }

    #[test]
    fn the_scanner_and_serde_json_agree_on_what_is_json(document in prop_oneof![scraps(), damaged()]) {
        let object = [br#"{"other":"#, document.as_slice(), b"}"].concat();
        let expected = serde_json::from_slice::<serde_json::Map<String, Value>>(&object);
        // The scraps may close the object and go on with a key that requests give a meaning to.
        let is_more = expected.as_ref().is_ok_and(|map| map.len() > 1);
        let text = String::from_utf8_lossy(&object);
        prop_assert!(is_more || is_json(&document) == expected.is_ok(), "{} and {:?}", text, expected);
    }

    #[test]
    fn a_float_is_read_where_and_as_the_standard_library_reads_it(
        text in "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,2})?",
    ) {
        let body = format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"data":[{text}]}}]}}"#);
        let value: f32 = text.parse().unwrap();
        let expected = value.is_finite().then(|| value.to_le_bytes().to_vec());
        prop_assert_eq!(read_one(&model_of(DType::Fp32, &[1]), body.as_bytes()).ok(), expected);
    }

    #[test]
    fn any_bytes_end_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), head_len in 0_usize..400) {
        for spec in models().values() {
            for request in [parse_json(&bytes), parse_binary(&bytes, head_len), parse_raw(&bytes, spec)] {
                let _ = request.map(|request| accept(spec, &request));
            }
        }
    }

    #[test]
    fn a_changed_byte_ends_without_a_panic(at in any::<prop::sample::Index>(), which in any::<prop::sample::Index>(), byte: u8) {
        let bodies = bodies();
        let mut body = bodies[which.index(bodies.len())].clone().into_bytes();
        let at = at.index(body.len());
        body[at] = byte;
        for spec in models().values() {
            let _ = parse_json(&body).map(|request| accept(spec, &request));
        }
    }

    #[test]
    fn whatever_a_replica_leaves_is_answered_or_refused(
        datatype in prop::sample::select(DType::ALL.to_vec()),
        shape in prop::collection::vec(-1_i64..4, 0..4),
        data in prop::collection::vec(0_u8..4, 0..40),
        binary: bool,
        classification in 0_u32..3,
    ) {
        let spec = model_of(datatype.0, &shape);
        let wanted = WantedOutput { index: 0, binary, classification };
        let wanted = Wanted { outputs: [wanted].into_iter().collect(), ..Wanted::default() };
        let encoded = encode(&spec, &wanted, &[OutputView { spec: &spec.outputs[0], shape: Shape::from_slice(&shape), data: (&data[..]).into() }]);
        if let Ok(encoded) = encoded {
            let head = &encoded.body[..encoded.head_len.unwrap_or(encoded.body.len())];
            prop_assert!(is_json(head) || head.windows(3).any(|word| word == b"NaN"));
        }
    }

    #[test]
    fn floats_come_back_as_they_were(values in prop::collection::vec(any::<f32>(), 0..50)) {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let back = round_trip(DType::Fp32, values.len(), &data);
        for (back, value) in back.as_chunks().0.iter().zip(values) {
            let back = f32::from_le_bytes(*back);
            prop_assert!(back.to_bits() == value.to_bits() || (back.is_nan() && value.is_nan()));
        }
    }

    #[test]
    fn doubles_come_back_as_they_were(values in prop::collection::vec(prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO, 0..50)) {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        prop_assert_eq!(round_trip(DType::Fp64, values.len(), &data), data);
    }

    #[test]
    fn texts_come_back_as_they_were(values in prop::collection::vec(any::<String>(), 0..20)) {
        let parts = values.iter().map(|text| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat());
        let data = parts.collect::<Vec<_>>().concat();
        prop_assert_eq!(round_trip(DType::Bytes, values.len(), &data), data);
    }

    #[test]
    fn integers_come_back_as_they_were(
        datatype in prop::sample::select(vec![
            DType::Uint8, DType::Uint16, DType::Uint32, DType::Uint64, DType::Int8, DType::Int16, DType::Int32, DType::Int64,
        ]),
        bytes in prop::collection::vec(any::<[u8; 8]>(), 0..20),
    ) {
        let data: Vec<u8> = bytes.iter().flat_map(|bytes| bytes[..datatype.size()].to_vec()).collect();
        prop_assert_eq!(round_trip(datatype, bytes.len(), &data), data);
    }
}

/// Writes an output as JSON, and reads the same text back as an input.
fn round_trip(datatype: DType, count: usize, data: &[u8]) -> Vec<u8> {
    let spec = model_of(datatype, &[-1]);
    let wanted = WantedOutput { index: 0, binary: false, classification: 0 };
    let wanted = Wanted { outputs: [wanted].into_iter().collect(), ..Wanted::default() };
    let view =
        OutputView { spec: &spec.outputs[0], shape: Shape::from_slice(&[count as i64]), data: data.into() };
    let answer = String::from_utf8(encode(&spec, &wanted, &[view]).unwrap().body).unwrap();
    let request = answer.replacen("\"outputs\":[{\"name\":\"y\"", "\"inputs\":[{\"name\":\"x\"", 1);
    read_one(&spec, request.as_bytes()).unwrap()
}
