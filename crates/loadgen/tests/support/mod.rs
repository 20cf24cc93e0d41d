//! Servers of the tests: they answer at once, or misbehave in one known way.
#![allow(dead_code, reason = "each test file uses some of them")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lrai_loadgen::{Config, Progress, Protocol, Report, run};
use rustix::event::{Timespec, epoll};

pub const REQUEST: &[u8] = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
pub const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"outputs\":[1,2,3,4]";

/// A server on its own thread; it ends when this is dropped.
pub struct Server {
    pub address: SocketAddr,
    pub answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One epoll loop that gives the same answer to whatever it reads. `stall`: once, after that time, it sleeps that long.
pub fn fixed(stall: Option<(Duration, Duration)>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (stopped, count) = (Arc::clone(&stop), Arc::clone(&answered));
    let thread = std::thread::spawn(move || serve(&listener, stall, &stopped, &count));
    Server { address, answered, stop, thread: Some(thread) }
}

fn serve(
    listener: &TcpListener,
    mut stall: Option<(Duration, Duration)>,
    stop: &AtomicBool,
    count: &AtomicU64,
) {
    listener.set_nonblocking(true).expect("a socket");
    let queue = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    epoll::add(&queue, listener, epoll::EventData::new_u64(u64::MAX), epoll::EventFlags::IN).expect("added");
    let mut sockets: Vec<Option<OwnedFd>> = Vec::new();
    let (mut buffer, mut first) = ([0_u8; 16_384], None);
    while !stop.load(Ordering::Relaxed) {
        let mut events = Vec::with_capacity(256);
        let timeout = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let _ = epoll::wait(&queue, rustix::buffer::spare_capacity(&mut events), Some(&timeout));
        for event in &events {
            let Some(index) = usize::try_from(event.data.u64()).ok().filter(|&index| index < sockets.len())
            else {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).expect("a socket");
                    stream.set_nodelay(true).expect("a socket");
                    let token = epoll::EventData::new_u64(sockets.len() as u64);
                    epoll::add(&queue, &stream, token, epoll::EventFlags::IN | epoll::EventFlags::ET)
                        .expect("added");
                    sockets.push(Some(stream.into()));
                }
                continue;
            };
            let Some(socket) = &sockets[index] else { continue };
            match rustix::io::read(socket, &mut buffer[..]) {
                Ok(0) => sockets[index] = None,
                Ok(_) => {
                    let began = *first.get_or_insert_with(Instant::now);
                    if let Some((_, length)) = stall.take_if(|(after, _)| began.elapsed() >= *after) {
                        std::thread::sleep(length);
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    let _ = rustix::io::write(socket, ANSWER);
                }
                Err(rustix::io::Errno::AGAIN) => {}
                Err(_) => sockets[index] = None,
            }
        }
    }
}

/// A thread per connection runs `talk` on it; for behaviour, not for speed.
pub fn scripted(talk: impl Fn(TcpStream, u64) + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let stopped = Arc::clone(&stop);
    listener.set_nonblocking(true).expect("a socket");
    let talk = Arc::new(talk);
    let thread = std::thread::spawn(move || {
        let mut number = 0;
        while !stopped.load(Ordering::Relaxed) {
            let Ok((stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let talk = Arc::clone(&talk);
            stream.set_nonblocking(false).expect("a socket");
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
            std::thread::spawn(move || talk(stream, number));
            number += 1;
        }
    });
    Server { address, answered, stop, thread: Some(thread) }
}

/// Reads one request of the tests; false at the end of the connection.
pub fn read_request(stream: &mut TcpStream) -> bool {
    stream.read_exact(&mut vec![0; REQUEST.len()]).is_ok()
}

pub fn say(stream: &mut TcpStream, answer: &[u8]) {
    let _ = stream.write_all(answer);
}

/// A short run over HTTP against that address; tests change what they are about.
pub fn config(address: &str) -> Config {
    Config {
        address: address.to_owned(),
        protocol: Protocol::Http,
        path: String::new(),
        connections: 4,
        rate: None,
        due_us: Vec::new(),
        poisson: false,
        seed: 0,
        duration_s: 0.5,
        warmup_s: 0.0,
        timeout_s: 2.0,
        spin_us: None,
    }
}

pub fn load(config: &Config) -> Report {
    run(config, vec![REQUEST.to_vec()], &Progress::default()).expect("a run")
}
