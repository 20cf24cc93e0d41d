//! A model behind a real queue, with an actor that is a thread of the test instead of a process.
#![allow(dead_code, clippy::unwrap_used, clippy::missing_panics_doc)]

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use lrai_dataplane::config::Config;
use lrai_dataplane::dataplane::Dataplane;
use lrai_dataplane::link::Mailbox;
use lrai_dataplane::models::Model;
use lrai_dataplane::tensor::{DType, ModelSpec, TensorSpec};
use lrai_dataplane::wire::{Place, Run};
use memmap2::{MmapOptions, MmapRaw};
use serde_json::{Value, json};

pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("after 5 s still not so: {what}");
}

pub fn tensor(name: &str, datatype: DType, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype, shape: shape.into(), optional: false, labels: Vec::new() }
}

/// A specification from JSON; what is left out is as in a model without settings.
pub fn model_spec(mut given: Value) -> ModelSpec {
    let settings = json!({
        "name": "m", "version": "1", "platform": "test", "config": "", "retry": true,
        "max_queue_requests": 1024, "max_queue_bytes": 1 << 28, "max_output_bytes": 1 << 28, "priority_levels": 0,
        "default_priority": 0, "guard": [], "ragged": null,
    });
    let fill = |given: &mut Value, defaults: &Value| {
        for (key, value) in defaults.as_object().unwrap() {
            given.as_object_mut().unwrap().entry(key).or_insert_with(|| value.clone());
        }
    };
    fill(&mut given, &settings);
    for side in ["inputs", "outputs"] {
        for tensor in given[side].as_array_mut().unwrap() {
            fill(tensor, &json!({ "optional": false, "labels": [] }));
        }
    }
    serde_json::from_value(given).unwrap()
}

/// A model named `m`, version 1, with an input `x` and an output `y`.
pub fn spec(max_batch_size: u32, datatype: DType, shape: &[i64]) -> ModelSpec {
    let mut spec = model_spec(json!({ "max_batch_size": max_batch_size, "inputs": [], "outputs": [] }));
    spec.inputs = vec![tensor("x", datatype, shape)];
    spec.outputs = vec![tensor("y", datatype, shape)];
    spec.max_output_bytes = 1 << 20;
    spec
}

pub fn socketpair() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: a plain system call that fills two descriptors, owned by nobody else.
    unsafe {
        assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, ends.as_mut_ptr()), 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

/// The slabs of an actor.
pub struct Slabs {
    pub input: MmapRaw,
    pub output: MmapRaw,
}

impl Slabs {
    pub fn map(mailbox: &Mailbox) -> Self {
        let input = MmapOptions::new().map_raw_read_only(&mailbox.input).unwrap();
        Self { input, output: MmapOptions::new().map_raw(&mailbox.output).unwrap() }
    }
}

/// What an actor sees of a batch, and how it answers.
pub struct Turn<'a> {
    pub mailbox: &'a Mailbox,
    pub slabs: &'a Slabs,
    pub run: &'a Run,
}

impl Turn<'_> {
    pub fn input(&self, index: usize) -> &[u8] {
        let place = self.run.inputs[index].as_ref().unwrap();
        // SAFETY: the gateway's places lie in the mapping.
        unsafe {
            let address = self.slabs.input.as_ptr().add(place.offset as usize);
            std::slice::from_raw_parts(address, place.byte_len as usize)
        }
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let base = self.run.output_slot as usize * self.mailbox.output_slot_bytes as usize;
        assert!(offset + bytes.len() <= self.mailbox.output_slot_bytes as usize);
        // SAFETY: checked to lie in the slot.
        unsafe {
            let address = self.slabs.output.as_mut_ptr().add(base + offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), address, bytes.len());
        }
    }

    /// Answers with the first input as the only output.
    pub fn echo(&self) {
        let place = self.run.inputs[0].clone().unwrap();
        self.write(0, self.input(0));
        let output = Place { offset: 0, ..place };
        self.mailbox.done(self.run.batch, 1000, [output]).unwrap();
    }
}

/// Attaches an actor that handles each batch with `turn`; it leaves when `turn` returns false or its link closes.
pub fn attach(
    dataplane: &Dataplane,
    key: u64,
    mut turn: impl FnMut(Turn<'_>) -> bool + Send + 'static,
) -> (u64, JoinHandle<()>) {
    let (ours, theirs) = socketpair();
    let replica = dataplane.attach(key, ours).unwrap();
    let thread = std::thread::spawn(move || {
        let Some(mailbox) = Mailbox::open(theirs).unwrap() else { return };
        let slabs = Slabs::map(&mailbox);
        mailbox.ready().unwrap();
        while let Ok(Some(run)) = mailbox.receive() {
            if !turn(Turn { mailbox: &mailbox, slabs: &slabs, run: &run }) {
                return;
            }
        }
    });
    (replica, thread)
}

/// Settings on free ports, without metrics, and with those that are `given`.
pub fn config(given: &Value) -> Config {
    let mut all = json!({
        "host": "127.0.0.1", "http_port": 0, "grpc_port": 0, "metrics_port": null, "threads": 1, "pool_threads": 2,
        "max_connections": 16_384, "max_body_bytes": 64 << 20, "max_memory_bytes": 1 << 30,
        "header_timeout_ms": 10_000, "body_timeout_ms": 30_000, "keep_alive_timeout_ms": 600_000,
        "not_ready_status": 400, "explicit_control": false, "tenant_header": "", "access_log": false, "journal": null,
        "server_version": "",
    });
    all.as_object_mut().unwrap().extend(given.as_object().unwrap().clone());
    Config::parse(&all.to_string()).unwrap()
}

/// A data plane on the current runtime with one published model and no replica.
pub fn dataplane(spec: ModelSpec) -> (Arc<Dataplane>, u64, Arc<Model>) {
    let dataplane = Dataplane::new(config(&json!({}))).unwrap();
    dataplane.set_runtime(tokio::runtime::Handle::current());
    let key = dataplane.add_model(spec).unwrap();
    dataplane.publish(key).unwrap();
    let model = dataplane.model("m", "").unwrap();
    (dataplane, key, model)
}

/// The bytes of `values` as FP32.
pub fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
