//! The event loop: one thread, one epoll, requests sent when they are due.

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::net::SocketAddrAny;

use crate::connection::{Connection, Heard, Phase, resolve};
use crate::environment::Meter;
use crate::frame::Headers;
use crate::grpc::Stream;
use crate::http::Reader;
use crate::schedule::{Rate, Schedule};
use crate::tally::Tally;
use crate::wire::{Answer, Fault, Wire};
use crate::{Config, LoadError, Protocol, Report};

/// Time-outs, the stop flag and the watcher's numbers are looked at this often.
const TICK: u64 = 10_000_000;
/// The first connections may take this long before the run begins without them.
const CONNECT_PATIENCE: u64 = 2_000_000_000;
const BACK_OFF_START: u64 = 1_000_000;
const BACK_OFF_LIMIT: u64 = 250_000_000;
const READ_BYTES: usize = 128 * 1024;
const EVENTS: usize = 256;

/// What another thread may watch and say while a run goes on.
#[derive(Debug, Default)]
pub struct Progress {
    /// Set it to end the run soon.
    pub stop: AtomicBool,
    /// Successful answers so far, warm-up included.
    pub answered: AtomicU64,
    /// Errors so far, warm-up included.
    pub errors: AtomicU64,
}

/// Runs the load to its end, on the calling thread; requests are used in turn.
pub fn run(config: &Config, requests: Vec<Vec<u8>>, progress: &Progress) -> Result<Report, LoadError> {
    config.check()?;
    if requests.is_empty() || requests.iter().any(Vec::is_empty) && config.protocol == Protocol::Http {
        return Err(LoadError::Config("no request to send".into()));
    }
    // Sleeps end when they should, not up to 50 us later; only this thread is concerned.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let mut engine = Engine::new(config, requests)?;
    engine.connect()?;
    let meter = Meter::start();
    engine.drive(progress)?;
    Ok(engine.tally.report(config, meter.stop()))
}

/// A place for a connection; the generation tells late events of its predecessors apart.
#[derive(Default)]
struct Slot {
    connection: Option<Connection>,
    generation: u32,
    /// Times in a row that it ended without an answer.
    failures: u32,
}

enum Pace {
    Closed,
    Open(Schedule),
}

struct Engine {
    origin: Instant,
    address: SocketAddrAny,
    headers: Option<Arc<Headers>>,
    requests: Vec<Arc<[u8]>>,
    next_request: usize,
    pace: Pace,
    start: u64,
    length: u64,
    warmup: u64,
    timeout: u64,
    spin: u64,
    epoll: OwnedFd,
    slots: Vec<Slot>,
    /// Longest idle first, so that all connections are used evenly.
    idle: VecDeque<usize>,
    /// When to open which slot again.
    retries: BTreeSet<(u64, usize)>,
    busy: usize,
    /// A request is due and no connection is free.
    starved: bool,
    buffer: Vec<u8>,
    events: Vec<epoll::Event>,
    tally: Tally,
}

impl Engine {
    fn new(config: &Config, requests: Vec<Vec<u8>>) -> Result<Self, LoadError> {
        let nanoseconds = |seconds: f64| (seconds * 1e9) as u64;
        let warmup = nanoseconds(config.warmup_s);
        // The header block and gRPC's prefix of a message: not compressed, length.
        let framed = requests.into_iter().map(|message| match config.protocol {
            Protocol::Http => message.into(),
            Protocol::Grpc => [&[0], &(message.len() as u32).to_be_bytes()[..], &message].concat().into(),
        });
        let authority = if config.address.starts_with("unix:") { "localhost" } else { &config.address };
        Ok(Self {
            origin: Instant::now(),
            address: resolve(&config.address)?,
            headers: (config.protocol == Protocol::Grpc)
                .then(|| Arc::new(Headers::new(authority, &config.path))),
            requests: framed.collect(),
            next_request: 0,
            pace: match config.rate {
                Some(rate) => {
                    let rate = Rate::new(rate, config.poisson.then_some(config.seed));
                    Pace::Open(Schedule::Rate(rate))
                }
                None if config.due_us.is_empty() => Pace::Closed,
                None => Pace::Open(Schedule::Listed(config.due_us.clone().into_iter())),
            },
            start: 0,
            length: warmup + nanoseconds(config.duration_s),
            warmup,
            timeout: nanoseconds(config.timeout_s),
            // Waking from a sleep takes 20 to 50 us; polling that long before every request hides it, but a thread that
            // never sleeps loses its turn to the server it shares cores with, for milliseconds.
            spin: config.spin_us.map_or((config.mean_gap_ns() / 10.0).min(50e3), |us| us * 1e3) as u64,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(std::io::Error::from)?,
            slots: (0..config.connections).map(|_| Slot::default()).collect(),
            idle: VecDeque::with_capacity(config.connections),
            retries: BTreeSet::new(),
            busy: 0,
            starved: false,
            buffer: vec![0; READ_BYTES],
            events: Vec::with_capacity(EVENTS),
            tally: Tally::new(0..1),
        })
    }

    fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Opens all connections; the run begins when each has succeeded or failed once.
    fn connect(&mut self) -> Result<(), LoadError> {
        (0..self.slots.len()).for_each(|slot| self.open(slot));
        while self.idle.len() + self.retries.len() < self.slots.len() && self.now() < CONNECT_PATIENCE {
            self.wait(TICK)?;
        }
        self.start = self.now();
        self.tally = Tally::new(self.start + self.warmup..self.start + self.length);
        Ok(())
    }

    fn drive(&mut self, progress: &Progress) -> Result<(), LoadError> {
        let mut tick = self.start;
        loop {
            let now = self.now();
            if now >= tick {
                tick = now + TICK;
                self.give_up_old_requests(now);
                progress.answered.store(self.tally.total_answered, Relaxed);
                progress.errors.store(self.tally.total_errors, Relaxed);
                if progress.stop.load(Relaxed) {
                    return Ok(());
                }
            }
            while let Some(&(at, slot)) = self.retries.first().filter(|(at, _)| *at <= now) {
                self.retries.remove(&(at, slot));
                self.open(slot);
            }
            self.dispatch();
            let due = self.due(now);
            if self.busy == 0 && due.is_none() {
                return Ok(());
            }
            let mut until = self.retries.first().map_or(tick, |&(at, _)| at.min(tick));
            if let Some(due) = due.filter(|_| !self.idle.is_empty()) {
                until = until.min(due.saturating_sub(self.spin));
            }
            self.wait(until.saturating_sub(now))?;
        }
    }

    /// Sleeps until something happens, at most that long, and deals with it.
    fn wait(&mut self, nanoseconds: u64) -> Result<(), LoadError> {
        let timespec = |nanoseconds: u64| Timespec {
            tv_sec: (nanoseconds / 1_000_000_000) as i64,
            tv_nsec: (nanoseconds % 1_000_000_000) as i64,
        };
        // epoll_wait sleeps whole milliseconds, and its precise successor came with Linux 5.11; ppoll does the rest.
        let whole = nanoseconds / 1_000_000 * 1_000_000;
        if whole == 0 && nanoseconds > 0 {
            let watched = &mut [PollFd::new(&self.epoll, PollFlags::IN)];
            if poll(watched, Some(&timespec(nanoseconds))) == Ok(0) {
                return Ok(());
            }
        }
        let mut events = std::mem::take(&mut self.events);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timespec(whole))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
        for event in events.drain(..) {
            let token = event.data.u64();
            let (slot, generation) = ((token & 0xffff_ffff) as usize, (token >> 32) as u32);
            if self.slots[slot].generation == generation {
                self.turn(slot, event.flags);
                // What became due meanwhile does not wait for the rest of the events.
                self.dispatch();
            }
        }
        self.events = events;
        Ok(())
    }

    /// When the next request is due, if there is to be one.
    fn due(&self, now: u64) -> Option<u64> {
        let due = match &self.pace {
            Pace::Closed => now,
            Pace::Open(schedule) => self.start + schedule.due(),
        };
        (self.start > 0 && due < self.start + self.length).then_some(due)
    }

    /// Sends what is due, as long as connections are free.
    fn dispatch(&mut self) {
        loop {
            let now = self.now();
            let Some(due) = self.due(now).filter(|due| *due <= now) else {
                self.starved = false;
                return;
            };
            let too_old = now - due > self.timeout;
            let slot = if too_old { None } else { self.idle.pop_front() };
            if slot.is_none() && !too_old {
                self.starved = true;
                return;
            }
            if let Pace::Open(schedule) = &mut self.pace {
                schedule.advance();
            }
            match slot {
                Some(slot) => self.send(slot, due, now),
                None => self.tally.gave_up(due, now, false),
            }
        }
    }

    fn send(&mut self, slot: usize, due: u64, now: u64) {
        let request = &self.requests[self.next_request];
        self.next_request = (self.next_request + 1) % self.requests.len();
        self.tally.sent(due, now, self.starved);
        self.busy += 1;
        let connection = self.slots[slot].connection.as_mut().expect("an idle slot has a connection");
        if let Err(fault) = connection.send(request, due) {
            self.lost(slot, Some(fault));
        }
    }

    /// Something happened on a connection.
    fn turn(&mut self, slot: usize, flags: epoll::EventFlags) {
        use epoll::EventFlags as Flags;
        let Some(connection) = self.slots[slot].connection.as_mut() else { return };
        if connection.phase == Phase::Connecting {
            match connection.connected() {
                Ok(()) => {
                    connection.phase = Phase::Idle;
                    self.idle.push_back(slot);
                }
                Err(fault) => return self.lost(slot, Some(fault)),
            }
        }
        if flags.contains(Flags::OUT)
            && let Err(fault) = connection.flush()
        {
            return self.lost(slot, Some(fault));
        }
        let gone = flags.intersects(Flags::RDHUP | Flags::HUP | Flags::ERR);
        if !gone && !flags.contains(Flags::IN) {
            return;
        }
        match connection.read(&mut self.buffer, gone) {
            Heard::Answer(answer) => self.answered(slot, answer),
            Heard::Gone(fault) => self.lost(slot, Some(fault)),
            Heard::Nothing if connection.phase == Phase::Idle && connection.wire.is_going() => {
                self.lost(slot, None);
            }
            Heard::Nothing => {}
        }
    }

    fn answered(&mut self, slot: usize, answer: Answer) {
        let now = self.now();
        let place = &mut self.slots[slot];
        let connection = place.connection.as_mut().expect("an answer came on a connection");
        let Phase::Busy(due) = connection.phase else {
            return self.lost(slot, Some(Fault::new("malformed", "answer without a request")));
        };
        let reusable = answer.reusable;
        connection.phase = Phase::Idle;
        place.failures = 0;
        self.busy -= 1;
        self.tally.answered(due, now, answer);
        self.idle.push_back(slot);
        if !reusable {
            self.lost(slot, None);
        }
    }

    /// A connection is of no use any more; the request on it has failed. Opens it again, at once if it ever answered.
    fn lost(&mut self, slot: usize, fault: Option<Fault>) {
        let now = self.now();
        let place = &mut self.slots[slot];
        place.generation += 1;
        let phase = place.connection.take().map(|connection| connection.phase);
        match (phase, fault) {
            (Some(Phase::Busy(due)), fault) => {
                self.busy -= 1;
                self.tally.failed(due, now, fault.unwrap_or_else(|| Fault::new("closed", "given up")));
            }
            (Some(Phase::Idle), fault) => {
                self.idle.retain(|&other| other != slot);
                // A server may close an idle connection, but hardly one after the other before any request.
                if let Some(fault) = fault.filter(|_| place.failures > 0) {
                    self.tally.failed(now, now, fault);
                }
            }
            (_, Some(fault)) => self.tally.failed(now, now, fault),
            (_, None) => {}
        }
        if place.failures == 0 && phase.is_some_and(|phase| phase != Phase::Connecting) {
            place.failures = 1;
            return self.open(slot);
        }
        let delay = BACK_OFF_START << place.failures.min(16);
        place.failures += 1;
        self.retries.insert((now + delay.min(BACK_OFF_LIMIT), slot));
    }

    fn open(&mut self, slot: usize) {
        let wire = match &self.headers {
            Some(headers) => Wire::Grpc(Box::new(Stream::new(Arc::clone(headers)))),
            None => Wire::Http { reader: Reader::new(), request: Arc::from([]), sent: 0 },
        };
        let opened = Connection::open(&self.address, wire).and_then(|connection| {
            let token = u64::from(self.slots[slot].generation) << 32 | slot as u64;
            let flags = epoll::EventFlags::IN
                | epoll::EventFlags::OUT
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::ET;
            epoll::add(&self.epoll, connection.socket(), epoll::EventData::new_u64(token), flags)
                .map_err(|error| Fault::new("connect", error.to_string()))?;
            Ok(connection)
        });
        match opened {
            Ok(connection) => self.slots[slot].connection = Some(connection),
            Err(fault) => self.lost(slot, Some(fault)),
        }
    }

    fn give_up_old_requests(&mut self, now: u64) {
        for slot in 0..self.slots.len() {
            let Some(Connection { phase: Phase::Busy(due), .. }) = self.slots[slot].connection else {
                continue;
            };
            if now.saturating_sub(due) > self.timeout {
                self.busy -= 1;
                self.tally.gave_up(due, now, true);
                self.slots[slot].connection = None;
                self.lost(slot, None);
            }
        }
    }
}
