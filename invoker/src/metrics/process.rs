//! The process itself, under the names that every Prometheus client library uses.

use prometheus::{Counter, Gauge};

use super::families::Families;

/// Read from `/proc/self` at each scrape.
#[derive(Debug)]
pub(super) struct Process {
    resident: Gauge,
    cpu: Counter,
    threads: Gauge,
    fds: Gauge,
    started: Gauge,
}

impl Process {
    pub(super) fn new(families: &Families) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| families.gauge(name, help, &[]);
        Ok(Self {
            resident: gauge("process_resident_memory_bytes", "Resident memory of the invoker.")?,
            cpu: families
                .seconds_counter("process_cpu_seconds_total", "User and system time of the invoker.")?,
            threads: gauge("process_threads", "Threads of the invoker.")?,
            fds: gauge("process_open_fds", "Open file descriptors of the invoker.")?,
            started: gauge("process_start_time_seconds", "Start time, seconds since 1970.")?,
        })
    }

    /// Best effort: a value that cannot be read keeps its last reading.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    pub(super) fn refresh(&self) {
        let Ok(me) = procfs::process::Process::myself() else { return };
        if let Ok(stat) = me.stat() {
            let ticks = procfs::ticks_per_second() as f64;
            self.resident.set((stat.rss * procfs::page_size()) as f64);
            let used = (stat.utime + stat.stime) as f64 / ticks;
            // Two scrapes at once may both see the same step; a counter must not go back.
            self.cpu.inc_by((used - self.cpu.get()).max(0.0));
            self.threads.set(stat.num_threads as f64);
            if let Ok(boot) = procfs::boot_time_secs() {
                self.started.set(boot as f64 + stat.starttime as f64 / ticks);
            }
        }
        if let Ok(count) = me.fd_count() {
            self.fds.set(count as f64);
        }
    }
}
