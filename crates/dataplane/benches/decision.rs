//! How long the line's decisions take, and that they allocate nothing: `cargo bench --bench decision`.
//!
//! A turn is what happens around one request: it is admitted (admit, add), the next batch is chosen, and it is
//! asked when to look again. Each verb is timed by itself, clock included.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::read_to_string;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use lrai_dataplane::knobs::Knobs;
use lrai_dataplane::line::{Admission, Arrival, LOWEST, Line, Replicas};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(address, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TURNS: usize = 200_000;
const GOAL: &str = r#"{"k":16,"tau_us":200,"slack_us":100,"work_conserving":false,"goal_us":20000,
    "service":[[0,1,93],[0,2,106],[0,4,132],[0,8,184],[0,16,288],[0,32,496]]}"#;

/// What one line goes through: knobs, batches that wait, tenants and priorities among the requests.
struct Case {
    name: &'static str,
    knobs: &'static str,
    waiting: usize,
    tenants: u64,
    ranks: u32,
}

const CASES: [Case; 6] = [
    Case { name: "default, 1 batch waits", knobs: "{}", waiting: 1, tenants: 0, ranks: 1 },
    Case { name: "default, 32 batches wait", knobs: "{}", waiting: 32, tenants: 0, ranks: 1 },
    Case { name: "goal, 1 batch waits", knobs: GOAL, waiting: 1, tenants: 0, ranks: 1 },
    Case { name: "goal, 32 batches wait", knobs: GOAL, waiting: 32, tenants: 0, ranks: 1 },
    Case { name: "goal, 32 wait, 3 priorities", knobs: GOAL, waiting: 32, tenants: 0, ranks: 3 },
    Case { name: "goal, 32 wait, 8 tenants", knobs: GOAL, waiting: 32, tenants: 8, ranks: 1 },
];

/// What four requests in a row have in common, and whose they are.
struct Kind {
    number: u64,
    accounts: [u64; 4],
}

/// Nanoseconds of each call of one verb.
struct Times(&'static str, Vec<u64>);

impl Times {
    fn of(name: &'static str) -> Self {
        Self(name, Vec::with_capacity(TURNS))
    }

    fn time<T>(&mut self, act: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = black_box(act());
        self.1.push(start.elapsed().as_nanos() as u64);
        result
    }

    fn report(&mut self) {
        self.1.sort_unstable();
        let at = |share: f64| self.1.get((self.1.len() as f64 * share) as usize).copied().unwrap_or_default();
        println!(
            "  {:<10} p50 {:>5} ns   p99 {:>5} ns   p99.9 {:>6} ns",
            self.0,
            at(0.5),
            at(0.99),
            at(0.999)
        );
    }
}

fn run(case: &Case) -> Result<(), Box<dyn std::error::Error>> {
    let knobs = Knobs::parse(case.knobs)?;
    let replicas = Replicas { ready: 1, free: 0, rest: Duration::from_micros(100) };
    let (mut line, mut now) = (Line::<Kind>::default(), Instant::now());
    let mut times = ["admit", "choose", "next_check"].map(Times::of);
    let mut allocations = 0;
    for turn in 0..TURNS + 1000 {
        if turn == 1000 {
            allocations = ALLOCATIONS.load(Relaxed);
            for verb in &mut times {
                verb.1.clear();
            }
        }
        now += Duration::from_micros(20);
        let number = turn as u64;
        let rank = if case.ranks == 1 { LOWEST } else { 1 + turn as u32 / 4 % case.ranks };
        let account = number.checked_rem(case.tenants).map_or(0, |tenant| line.tenants.account(1 + tenant));
        let deadline = knobs.deadline(now, Duration::ZERO, None);
        let arrival = Arrival { rows: 1, edge: 0, rank, account, now, deadline };
        // Every batch is of a kind of its own, so that as many wait as are wanted.
        times[0].time(|| {
            let is_alike = |kind: &Kind| kind.number == number / 4;
            let index = match line.admit(&arrival, &knobs, replicas, is_alike, |_| true) {
                Admission::Joins(index) => index,
                _ => line.open(&arrival, 32, Kind { number: number / 4, accounts: [0; 4] }),
            };
            line.add(index, &arrival, &knobs).payload.accounts[turn % 4] = account;
        });
        times[2].time(|| line.next_check(&knobs));
        if line.iter().count() > case.waiting {
            let leaving = times[1].time(|| line.choose(now, &knobs));
            let accounts = leaving.map(|leaving| leaving.batch.payload.accounts);
            accounts.into_iter().flatten().for_each(|account| line.tenants.leave(account));
        }
    }
    println!("{}: {} allocations", case.name, ALLOCATIONS.load(Relaxed) - allocations);
    times.iter_mut().for_each(Times::report);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cpu = read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find(|line| line.starts_with("model name")).unwrap_or("model name: unknown");
    let processors = std::thread::available_parallelism()?;
    println!("{model}; {processors} processors; load {}", read_to_string("/proc/loadavg")?.trim());
    let mut clock = Times::of("clock");
    (0..TURNS).for_each(|_| clock.time(|| ()));
    clock.report();
    CASES.iter().try_for_each(run)
}
