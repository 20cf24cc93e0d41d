//! What happens when descriptors run out. Alone in its process, because it lowers the limit of all of it.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use lrai_dataplane::dataplane::Dataplane;
use lrai_dataplane::listen::serve;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

const DESCRIPTORS: u64 = 128;

fn is_live(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 12];
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.read_exact(&mut answer).is_ok_and(|()| &answer == b"HTTP/1.1 200")
}

/// The processor times of all threads of this process, opened while descriptors last.
fn clocks() -> Vec<File> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
    threads.map(|thread| File::open(thread.join("schedstat")).unwrap()).collect()
}

fn processor_seconds(clocks: &[File]) -> f64 {
    let read = |clock: &File| {
        let mut text = [0; 64];
        let len = clock.read_at(&mut text, 0).unwrap();
        let text = str::from_utf8(&text[..len]).unwrap();
        text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
    };
    clocks.iter().map(read).sum()
}

#[test]
fn running_out_of_descriptors_neither_spins_nor_ends_the_server() {
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: Some(DESCRIPTORS) }).unwrap();
    let dataplane = Dataplane::new(support::config(&json!({}))).unwrap();
    let running = serve(&dataplane).unwrap();
    assert_eq!(getrlimit(Resource::Nofile).current, Some(DESCRIPTORS), "the soft limit is raised");
    let address = running.addresses.http.clone().unwrap();
    // Both ends of every connection are in this process: the server's end is the one that is missing.
    let clocks = clocks();
    let mut clients: Vec<_> = std::iter::from_fn(|| TcpStream::connect(&address).ok()).collect();
    let (before, began) = (processor_seconds(&clocks), Instant::now());
    std::thread::sleep(Duration::from_millis(500));
    let share = (processor_seconds(&clocks) - before) / began.elapsed().as_secs_f64();
    assert!(share < 0.2, "{share:.2} of a core while descriptors are missing");
    clients.truncate(10);
    assert!(clients.iter_mut().all(is_live));
    assert!(is_live(&mut TcpStream::connect(&address).unwrap()));
}
