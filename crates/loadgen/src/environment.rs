//! The machine a run took place on, and what else used it meanwhile.

use std::fs::read_to_string;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Facts that a reader needs to trust or distrust a number.
#[derive(Debug, Serialize)]
pub struct Environment {
    /// As the kernel names it.
    pub cpu_model: String,
    /// Cores this process may use.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// Share of all cores' time that the hypervisor gave to others during the run.
    pub steal_percent: f64,
    /// Share of all cores' time that anything on this machine used during the run, the client included.
    pub busy_percent: f64,
    /// CPU time of the thread that made the load.
    pub client_cpu_seconds: f64,
    /// The same as a share of one core; near 100 the client, not the server, may be the limit.
    pub client_cpu_percent: f64,
}

/// Clocks at the beginning of a run.
pub struct Meter {
    started: Instant,
    cpu_seconds: f64,
    ticks: Ticks,
}

#[derive(Clone, Copy, Default)]
struct Ticks {
    all: f64,
    idle: f64,
    steal: f64,
}

impl Meter {
    pub fn start() -> Self {
        Self { started: Instant::now(), cpu_seconds: thread_cpu_seconds(), ticks: Ticks::read() }
    }

    pub fn stop(&self) -> Environment {
        let (now, cpu_seconds) = (Ticks::read(), thread_cpu_seconds() - self.cpu_seconds);
        let percent = |part: f64| 100.0 * part / (now.all - self.ticks.all).max(1.0);
        let idle = now.idle - self.ticks.idle;
        let steal = now.steal - self.ticks.steal;
        let model = read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Environment {
            cpu_model: model.map_or("unknown", |(_, name)| name).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            steal_percent: percent(steal),
            busy_percent: percent(now.all - self.ticks.all - idle - steal),
            client_cpu_seconds: cpu_seconds,
            client_cpu_percent: 100.0 * cpu_seconds / self.started.elapsed().as_secs_f64(),
        }
    }
}

impl Ticks {
    /// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal; zeros where there is none.
    fn read() -> Self {
        let text = read_to_string("/proc/stat").unwrap_or_default();
        let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
        let fields: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
        match fields[..] {
            [.., idle, iowait, _, _, steal] => Self { all: fields.iter().sum(), idle: idle + iowait, steal },
            _ => Self::default(),
        }
    }
}

fn thread_cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
