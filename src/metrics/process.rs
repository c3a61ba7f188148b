//! What the system knows of this process, under the names that every Prometheus client library uses for it.
//!
//! The `prometheus` crate has such a collector, but it counts CPU time in whole seconds.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::family::Spec;

const CPU: Spec = Spec {
    name: "process_cpu_seconds_total",
    help: "CPU time of the process, user and system, in seconds.",
    labels: &[],
};
const START: Spec = Spec {
    name: "process_start_time_seconds",
    help: "When the process started, in seconds since 1970.",
    labels: &[],
};
const RESIDENT: Spec = Spec {
    name: "process_resident_memory_bytes",
    help: "Resident memory in bytes.",
    labels: &[],
};
const VIRTUAL: Spec = Spec {
    name: "process_virtual_memory_bytes",
    help: "Virtual memory in bytes.",
    labels: &[],
};
const THREADS: Spec = Spec {
    name: "process_threads",
    help: "Threads of the process.",
    labels: &[],
};
const OPEN_FDS: Spec = Spec {
    name: "process_open_fds",
    help: "Open file descriptors.",
    labels: &[],
};
const MAX_FDS: Spec = Spec {
    name: "process_max_fds",
    help: "Most file descriptors that may be open.",
    labels: &[],
};

const ALL: &[&Spec] = &[&CPU, &START, &RESIDENT, &VIRTUAL, &THREADS, &OPEN_FDS, &MAX_FDS];

/// Ticks a second in `/proc`: the kernel converts to this constant for user space on every platform we build for.
const USER_HZ: f64 = 100.0;

/// The [`Collector`] of this process.
pub(super) struct Process {
    descs: Vec<Desc>,
    /// Seconds since 1970; it never changes, so it is read once.
    started: Option<f64>,
}

impl Process {
    pub(super) fn new() -> Result<Process, prometheus::Error> {
        let started = || {
            let ticks = Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)?.start_ticks;
            Some(boot_time(&fs::read_to_string("/proc/stat").ok()?)? + ticks / USER_HZ)
        };
        Ok(Process {
            descs: ALL.iter().map(|spec| spec.desc()).collect::<Result<_, _>>()?,
            started: started(),
        })
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    /// A value that cannot be read is left out rather than reported as zero.
    fn collect(&self) -> Vec<MetricFamily> {
        let read = |path| fs::read_to_string(path).ok();
        let stat = read("/proc/self/stat").and_then(|text| Stat::parse(&text));
        let status = read("/proc/self/status").unwrap_or_default();
        let limits = read("/proc/self/limits").unwrap_or_default();
        // The descriptor that reads the directory is in the listing, but not the process's own.
        #[expect(clippy::cast_precision_loss, reason = "samples are floats in the text format")]
        let open_fds = fs::read_dir("/proc/self/fd")
            .ok()
            .map(|fds| fds.count().saturating_sub(1) as f64);
        let cpu = stat.map(|stat| stat.cpu_ticks / USER_HZ);
        [
            cpu.map(|v| CPU.family(MetricType::COUNTER, vec![CPU.counter(&[], v)])),
            gauge(&START, self.started),
            gauge(&RESIDENT, kilobytes(&status, "VmRSS:")),
            gauge(&VIRTUAL, kilobytes(&status, "VmSize:")),
            gauge(&THREADS, field(&status, "Threads:")),
            gauge(&OPEN_FDS, open_fds),
            gauge(&MAX_FDS, field(&limits, "Max open files")),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn gauge(spec: &Spec, value: Option<f64>) -> Option<MetricFamily> {
    value.map(|value| spec.family(MetricType::GAUGE, vec![spec.gauge(&[], value)]))
}

/// Of `/proc/self/stat`, see proc(5).
#[derive(Clone, Copy, PartialEq, Debug)]
struct Stat {
    /// Fields 14 and 15: user and system time.
    cpu_ticks: f64,
    /// Field 22: since boot.
    start_ticks: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // Field 2 is the program's name in parentheses and may hold spaces and parentheses itself.
        let after_name = &text[text.rfind(')')? + 1..];
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        Some(Stat {
            cpu_ticks: number(14)? + number(15)?,
            start_ticks: number(22)?,
        })
    }
}

/// `btime` of `/proc/stat`, in seconds since 1970.
fn boot_time(stat: &str) -> Option<f64> {
    field(stat, "btime ")
}

/// The first number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// The same, of a size in kB, as bytes.
fn kilobytes(text: &str, name: &str) -> Option<f64> {
    field(text, name).map(|kb| kb * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_program_name() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194304 99 0 0 0 250 50 7 8 20 0 1 0 116763 3133440 360 1";
        let parsed = Stat::parse(text).unwrap();
        assert_eq!(
            parsed,
            Stat {
                cpu_ticks: 300.0,
                start_ticks: 116_763.0
            }
        );
        assert_eq!(Stat::parse("42 (a) S 1 2"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn fields_by_name() {
        let status = "Name:\tx\nVmSize:\t    3060 kB\nVmRSS:\t    1440 kB\nThreads:\t3\n";
        assert_eq!(kilobytes(status, "VmRSS:"), Some(1440.0 * 1024.0));
        assert_eq!(field(status, "Threads:"), Some(3.0));
        assert_eq!(
            field(
                "Max open files            1024                 4096       files\n",
                "Max open files"
            ),
            Some(1024.0)
        );
        assert_eq!(
            field(
                "Max open files            unlimited            unlimited  files\n",
                "Max open files"
            ),
            None
        );
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000.0));
    }

    #[test]
    fn this_process_has_every_value() {
        let families = Process::new().unwrap().collect();
        assert_eq!(families.len(), ALL.len());
        let value = |name: &str| {
            let family = families.iter().find(|family| family.name() == name).unwrap();
            family.get_metric()[0].get_gauge().get_value()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_start_time_seconds") > 1_600_000_000.0);
    }
}
