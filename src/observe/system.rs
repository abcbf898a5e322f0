//! The machine and this process, sampled from /proc, /sys and the file system of the state folder.
//!
//! Nothing here fails: a file that is missing or says something else than expected leaves its values unknown, and the
//! rest of the sample stands. A sample takes about a dozen small reads. Call it from a telemetry thread.

use std::fs;
use std::path::{Path, PathBuf};

use crate::clock::Stopwatch;
use crate::types::SystemStat;

/// Temperatures that a sensor of a machine at work can mean, °C: what lies outside is a sensor that is not there.
const TEMPERATURES_C: std::ops::RangeInclusive<f32> = -50.0..=150.0;
/// Longest file read, bytes: /proc/stat of a machine with a thousand cores has 200 kB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads the machine.
#[derive(Debug)]
pub struct SystemSampler {
    proc: PathBuf,
    thermal: PathBuf,
    state_dir: PathBuf,
    started: Stopwatch,
    last: Option<CpuTimes>,
}

/// Ticks since the machine started, of all cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CpuTimes {
    busy: u64,
    all: u64,
}

impl SystemSampler {
    /// The process's age is counted from here; `state_dir`: whose disk is meant.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self::below(Path::new("/proc"), Path::new("/sys/class/thermal"), state_dir)
    }

    fn below(proc: &Path, thermal: &Path, state_dir: &Path) -> Self {
        let (proc, thermal, state_dir) = (proc.to_owned(), thermal.to_owned(), state_dir.to_owned());
        let mut sampler = Self { proc, thermal, state_dir, started: Stopwatch::start(), last: None };
        sampler.last = sampler.text("stat").as_deref().and_then(cpu_times);
        sampler
    }

    /// One sample; the ledger's fields are the caller's to fill in.
    pub fn sample(&mut self) -> SystemStat {
        let times = self.text("stat").as_deref().and_then(cpu_times);
        let cpu_usage_pct = times.zip(self.last).and_then(|(now, before)| usage_pct(before, now));
        self.last = times.or(self.last);
        let memory = self.text("meminfo").as_deref().and_then(memory_bytes);
        let disk = disk_of(&self.state_dir);
        SystemStat {
            cpu_usage_pct,
            load1: self.text("loadavg").as_deref().and_then(load1),
            memory_used_bytes: memory.map(|(used, _)| used),
            memory_total_bytes: memory.map(|(_, total)| total),
            process_rss_bytes: self.text("self/status").as_deref().and_then(|text| kibibytes(text, "VmRSS")),
            disk_used_pct: disk.and_then(|(used_pct, _)| used_pct),
            disk_free_bytes: disk.map(|(_, free)| free),
            open_fds: self.open_fds(),
            temperature_c: self.temperature_c(),
            uptime_s: i64::try_from(self.started.elapsed().as_secs()).ok(),
            ..SystemStat::default()
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        read_text(&self.proc.join(name))
    }

    /// Without the one that the listing itself takes.
    fn open_fds(&self) -> Option<i64> {
        let count = fs::read_dir(self.proc.join("self/fd")).ok()?.count();
        i64::try_from(count.saturating_sub(1)).ok()
    }

    fn temperature_c(&self) -> Option<f32> {
        let zones = fs::read_dir(&self.thermal).ok()?;
        let readings = zones.filter_map(|zone| {
            let zone = zone.ok()?;
            zone.file_name().to_string_lossy().starts_with("thermal_zone").then_some(())?;
            read_text(&zone.path().join("temp")).as_deref().and_then(celsius)
        });
        readings.reduce(f32::max)
    }
}

/// The text of a small file, whatever it holds.
fn read_text(path: &Path) -> Option<String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first line of /proc/stat: user nice system idle iowait irq softirq steal, and guests that are in the first two.
fn cpu_times(text: &str) -> Option<CpuTimes> {
    let mut words = text.lines().next()?.split_ascii_whitespace();
    (words.next()? == "cpu").then_some(())?;
    let ticks = words.take(8).map(|word| word.parse::<u64>().ok()).collect::<Option<Vec<u64>>>()?;
    let idle = ticks.get(3)?.checked_add(ticks.get(4).copied().unwrap_or(0))?;
    let all = ticks.iter().try_fold(0_u64, |sum, tick| sum.checked_add(*tick))?;
    Some(CpuTimes { busy: all.checked_sub(idle)?, all })
}

/// `None` where no time has passed, or the counters went back.
fn usage_pct(before: CpuTimes, now: CpuTimes) -> Option<f32> {
    let all = now.all.checked_sub(before.all).filter(|all| *all > 0)?;
    let busy = now.busy.checked_sub(before.busy)?;
    Some((busy as f32 / all as f32 * 100.0).clamp(0.0, 100.0))
}

fn load1(text: &str) -> Option<f32> {
    let load: f32 = text.split_ascii_whitespace().next()?.parse().ok()?;
    (load.is_finite() && load >= 0.0).then_some(load)
}

/// Used and total, of /proc/meminfo.
fn memory_bytes(text: &str) -> Option<(i64, i64)> {
    let total = kibibytes(text, "MemTotal")?;
    let available = kibibytes(text, "MemAvailable")?;
    (total > 0 && available <= total).then_some((total - available, total))
}

/// A line `Name:  123 kB`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let mut words = line.split_ascii_whitespace();
    let kibibytes: i64 = words.next()?.parse().ok()?;
    (words.next()? == "kB" && kibibytes >= 0).then_some(())?;
    kibibytes.checked_mul(1_024)
}

/// /sys/class/thermal/thermal_zoneN/temp is in thousandths of a degree.
fn celsius(text: &str) -> Option<f32> {
    let celsius = text.trim().parse::<i32>().ok()? as f32 / 1_000.0;
    TEMPERATURES_C.contains(&celsius).then_some(celsius)
}

/// Used share of what this process may use, as `df` says it, and free bytes.
fn disk_of(folder: &Path) -> Option<(Option<f32>, i64)> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    let used = disk.f_blocks.checked_sub(disk.f_bfree)?;
    let usable = used.checked_add(disk.f_bavail)?;
    let used_pct = (usable > 0).then(|| (used as f32 / usable as f32 * 100.0).clamp(0.0, 100.0));
    let free = disk.f_bavail.checked_mul(disk.f_frsize)?;
    Some((used_pct, i64::try_from(free).ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{CpuTimes, SystemSampler, celsius, cpu_times, kibibytes, load1, memory_bytes, usage_pct};
    use crate::types::SystemStat;

    const STAT: &str = "cpu  100 5 45 800 50 0 10 0 7 0\ncpu0 1 2 3 4\n";

    #[test]
    fn the_kernels_own_words_are_understood() {
        let before = cpu_times(STAT).unwrap();
        assert_eq!(before, CpuTimes { busy: 160, all: 1_010 });
        let now = cpu_times("cpu  150 5 45 850 50 0 10 0 7 0").unwrap();
        assert_eq!(usage_pct(before, now), Some(50.0));
        assert_eq!(load1("0.27 0.30 0.35 2/615 12345\n"), Some(0.27));
        let memory = "MemTotal:       24000000 kB\nMemFree:  1 kB\nMemAvailable:   18000000 kB\n";
        assert_eq!(memory_bytes(memory), Some((6_000_000 * 1_024, 24_000_000 * 1_024)));
        assert_eq!(kibibytes("VmPeak:\t 9 kB\nVmRSS:\t  2048 kB\n", "VmRSS"), Some(2 << 20));
        assert_eq!(celsius("47850\n"), Some(47.85));
    }

    #[test]
    fn garbage_is_unknown_and_never_a_number() {
        let garbage = [
            "",
            "\n",
            "cpu",
            "cpu x y z",
            "cpu 1 2 3",
            "cpu -1 2 3 4",
            "cpu 18446744073709551615 1 1 1",
            "CPU 1 2 3 4",
        ];
        for text in garbage.into_iter().chain(["\u{fffd}\0\u{1b}[2J", "cpu 1 2 3 99999999999999999999999"]) {
            assert_eq!(cpu_times(text), None, "{text:?}");
        }
        for text in ["", "NaN 1 1", "inf", "-1.0 0 0", "one", "1e99"] {
            assert_eq!(load1(text), None, "{text:?}");
        }
        for text in [
            "",
            "MemTotal: 5 kB",
            "MemTotal: x kB\nMemAvailable: 1 kB",
            "MemTotal: 1 kB\nMemAvailable: 2 kB",
            "MemTotal: 9223372036854775807 kB\nMemAvailable: 1 kB",
            "MemTotal: 5\nMemAvailable: 1",
            "MemTotal: -5 kB\nMemAvailable: -9 kB",
        ] {
            assert_eq!(memory_bytes(text), None, "{text:?}");
        }
        for text in ["", "hot", "-274000", "999999999", "99999999999999"] {
            assert_eq!(celsius(text), None, "{text:?}");
        }
        // Counters that went back, as after a suspend of some machines, and two samples of the same tick.
        let (early, late) = (CpuTimes { busy: 1, all: 10 }, CpuTimes { busy: 5, all: 20 });
        assert_eq!(usage_pct(late, early), None);
        assert_eq!(usage_pct(late, late), None);
    }

    fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn what_cannot_be_read_leaves_the_rest_of_the_sample() {
        let folder = tempfile::tempdir().unwrap();
        let (proc, thermal) = (folder.path().join("proc"), folder.path().join("thermal"));
        let mut bare = SystemSampler::below(&proc, &thermal, &folder.path().join("nowhere"));
        let sample = bare.sample();
        assert_eq!(SystemStat { uptime_s: None, ..sample }, SystemStat::default(), "nothing is there");

        write(&proc, "stat", STAT);
        write(&proc, "meminfo", [0xff_u8, 0x00, 0xfe]);
        write(&proc, "loadavg", "1.50 0 0");
        fs::create_dir_all(proc.join("self/status")).unwrap();
        write(&thermal, "thermal_zone0/temp", "41000");
        write(&thermal, "thermal_zone1/temp", "junk");
        write(&thermal, "thermal_zone2/temp", "52500");
        write(&thermal, "cooling_device0/temp", "99000");
        let mut sampler = SystemSampler::below(&proc, &thermal, folder.path());
        write(&proc, "stat", "cpu  110 5 45 830 50 0 10 0 7 0");
        let sample = sampler.sample();
        assert_eq!((sample.cpu_usage_pct, sample.load1, sample.temperature_c), (Some(25.0), Some(1.5), Some(52.5)));
        assert_eq!((sample.memory_used_bytes, sample.process_rss_bytes), (None, None));
        assert!(sample.disk_free_bytes.is_some() && sample.disk_used_pct.is_some());
        // A file that turns to garbage and back: the next good one counts from the last good one.
        write(&proc, "stat", "garbage");
        assert_eq!(sampler.sample().cpu_usage_pct, None);
        write(&proc, "stat", "cpu  120 5 45 840 50 0 10 0 7 0");
        assert_eq!(sampler.sample().cpu_usage_pct, Some(50.0));
    }

    #[test]
    fn this_machine_says_what_is_plausible() {
        let folder = tempfile::tempdir().unwrap();
        let sample = SystemSampler::new(folder.path()).sample();
        let (used, total) = (sample.memory_used_bytes.unwrap(), sample.memory_total_bytes.unwrap());
        assert!(0 < used && used < total, "{sample:?}");
        assert!(sample.process_rss_bytes.unwrap() > 1 << 20 && sample.open_fds.unwrap() >= 3, "{sample:?}");
        assert!((0.0..=100.0).contains(&sample.disk_used_pct.unwrap()), "{sample:?}");
        assert!(sample.clock_offset_ms.is_none());
    }
}
