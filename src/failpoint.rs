//! Failpoints: named places where a test makes this program die, stall or fail, in the binary that ships.
//!
//! `LOUPE_FAILPOINT="ledger.commit.before=kill@3"` kills the process (SIGKILL, as a power cut would end it) when it comes
//! to that place for the third time. Actions: `kill`, `error` (where the place can return one; elsewhere nothing
//! happens), `sleep:MS`; without `@N` the first time counts, with `@N+` every time from the Nth on. Several are parted
//! by `;`. Read once, by [`arm`].
//!
//! Invariants: every name is in [`ALL`], and every name of [`ALL`] is in the source (`tests/faults` compares them); an
//! unarmed program pays one relaxed load at each place; an armed one says so at ERROR.
//! Thread: any. Overload: none.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The environment variable that arms failpoints.
pub const VARIABLE: &str = "LOUPE_FAILPOINT";

/// Every failpoint, by room.
pub const ALL: &[&str] = &[
    "ledger.open.created",
    "ledger.open.identified",
    "ledger.migrate.before",
    "ledger.migrate.after",
    "ledger.run.begun",
    "ledger.recover.checked",
    "ledger.recover.swept",
    "artifact.write",
    "artifact.written",
    "artifact.sync",
    "artifact.rename",
    "artifact.renamed",
    "artifact.dir_made",
    "artifact.dir_sync",
    "ledger.begin.before",
    "ledger.begin.after",
    "ledger.inspection.half",
    "ledger.inspection.savepoint",
    "ledger.provenance.savepoint",
    "ledger.samples.savepoint",
    "ledger.acknowledge.savepoint",
    "ledger.acknowledge.half",
    "ledger.park.savepoint",
    "ledger.bind_site.savepoint",
    "ledger.review.savepoint",
    "ledger.review.half",
    "ledger.operator.half",
    "ledger.remark.half",
    "ledger.edit.savepoint",
    "ledger.kit.ended",
    "ledger.kit.booked",
    "ledger.stock.booked",
    "ledger.commit.before",
    "ledger.commit.after",
    "ledger.reply.after",
    "ledger.rollback.before",
    "ledger.close.before",
    "ledger.close.marked",
    "ledger.close.after",
    "uplink.connect.before",
    "uplink.connect.after",
    "uplink.read.after",
    "uplink.encode.after",
    "uplink.begin.after",
    "uplink.insert.after",
    "uplink.commit.before",
    "uplink.commit.after",
    "uplink.acknowledge.after",
    "uplink.halve",
    "uplink.park.before",
    "uplink.samples.sent",
    "uplink.reconnect",
    "downlink.page.read",
    "downlink.page.taken",
    "downlink.recipe.written",
    "downlink.recipe.renamed",
    "downlink.recipe.proved",
    "downlink.recipe.taken",
    "downlink.fit.placed",
    "downlink.fit.taken",
    "downlink.fit.back",
    "downlink.report.sent",
    "downlink.report.noted",
    "backup.ledger.copied",
    "backup.picture.next",
    "backup.ledger.added",
    "backup.synced",
    "backup.published",
    "restore.staging.begun",
    "restore.member.unpacked",
    "restore.synced",
    "restore.epoch.begun",
    "restore.publishing",
    "restore.aside.made",
    "restore.aside.moved",
    "restore.aside.synced",
    "restore.file.written",
    "restore.file.aside",
    "restore.file.published",
    "restore.files.published",
    "restore.pictures.published",
    "restore.ledger.published",
    "restore.staging.emptied",
    "restore.opened",
    "export.record",
    "export.synced",
    "export.published",
    "retention.pictures.savepoint",
    "retention.detail.half",
    "retention.step.done",
    "retention.file.removed",
    "central.retention.begun",
    "central.retention.done",
    "central.retention.committed",
    "index.file.created",
    "index.file.written",
    "index.staged",
    "index.renamed",
    "index.pointer.written",
    "index.pointer.renamed",
    "index.published",
    "index.prune",
    "index.fit.written",
    "index.fit.renamed",
    "index.fit.kept",
    "index.switch.opened",
    "index.switch.taken",
    "daemon.start.ledger",
    "daemon.start.pipeline",
    "daemon.start.ready",
    "daemon.stop.pipeline",
    "daemon.stop.uplink",
    "daemon.stop.ledger",
    "model.run",
    "model.rebuild",
    "pipeline.decided",
    "pipeline.submitted",
    "pipeline.committed",
    "pipeline.recipe.opened",
    "pipeline.recipe.taken",
];

static IS_ARMED: AtomicBool = AtomicBool::new(false);
static PLAN: OnceLock<Vec<Failpoint>> = OnceLock::new();

/// Why the environment's failpoints cannot be armed.
#[derive(Debug, thiserror::Error)]
#[error("{VARIABLE}: `{text}`: {fault}; expected NAME=ACTION[@N][+], ACTION one of kill, error, sleep:MS")]
pub struct FailpointError {
    text: String,
    fault: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Error,
    Sleep(Duration),
}

/// One armed place.
#[derive(Debug)]
struct Failpoint {
    name: &'static str,
    action: Action,
    /// The time it acts, from 1.
    nth: u64,
    /// Also each time after that.
    stays: bool,
    passed: AtomicU64,
}

impl Failpoint {
    fn parse(text: &str) -> Result<Self, FailpointError> {
        let refuse = |fault| FailpointError { text: text.to_owned(), fault };
        let (name, what) = text.split_once('=').ok_or_else(|| refuse("there is no `=`"))?;
        let known = ALL.iter().find(|known| **known == name.trim());
        let name = known.ok_or_else(|| refuse("there is no such failpoint"))?;
        let (action, nth) = what.trim().split_once('@').unwrap_or((what.trim(), "1"));
        let stays = nth.ends_with('+');
        let nth = nth.trim_end_matches('+').parse().ok().filter(|nth| *nth > 0);
        let nth = nth.ok_or_else(|| refuse("the count must be 1 or more"))?;
        let action = match action.split_once(':') {
            None if action == "kill" => Action::Kill,
            None if action == "error" => Action::Error,
            Some(("sleep", ms)) => {
                Action::Sleep(Duration::from_millis(ms.parse().map_err(|_| refuse("the pause is no number"))?))
            }
            _ => return Err(refuse("there is no such action")),
        };
        Ok(Self { name, action, nth, stays, passed: AtomicU64::new(0) })
    }

    fn acts(&self) -> bool {
        let passed = self.passed.fetch_add(1, Ordering::SeqCst) + 1;
        passed == self.nth || (self.stays && passed > self.nth)
    }
}

/// Arm what the environment says; the first call counts. Does nothing where the variable is not set.
///
/// # Errors
/// When the variable cannot be understood.
pub fn arm() -> Result<(), FailpointError> {
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(()) };
    let plan = parse(&text)?;
    if plan.is_empty() {
        return Ok(());
    }
    tracing::error!(plan = text, "{VARIABLE} is set: this program will fail on purpose; never set it in service");
    PLAN.get_or_init(|| plan);
    IS_ARMED.store(true, Ordering::Release);
    Ok(())
}

fn parse(text: &str) -> Result<Vec<Failpoint>, FailpointError> {
    text.split(';').map(str::trim).filter(|text| !text.is_empty()).map(Failpoint::parse).collect()
}

/// A place that cannot return an error: dies or stalls here when armed.
#[inline]
pub fn hit(name: &'static str) {
    if IS_ARMED.load(Ordering::Relaxed) {
        // A place that cannot fail goes on.
        let _cannot_fail = act(name);
    }
}

/// A place that can fail: as [`hit`], or an error of the disk.
///
/// # Errors
/// When this failpoint is armed with `error`.
#[inline]
pub fn io(name: &'static str) -> std::io::Result<()> {
    if IS_ARMED.load(Ordering::Relaxed) { act(name) } else { Ok(()) }
}

#[cold]
fn act(name: &'static str) -> std::io::Result<()> {
    for point in PLAN.get().into_iter().flatten().filter(|point| point.name == name) {
        if !point.acts() {
            continue;
        }
        match point.action {
            Action::Kill => die(),
            Action::Error => return Err(std::io::Error::other(format!("failpoint {name}"))),
            Action::Sleep(pause) => std::thread::sleep(pause),
        }
    }
    Ok(())
}

/// SIGKILL: no destructor runs, nothing is flushed.
fn die() -> ! {
    if rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).is_err() {
        std::process::abort();
    }
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{ALL, Action, hit, io, parse};

    #[test]
    fn names_are_unique_and_many() {
        let mut names = ALL.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert!(ALL.len() >= 30);
    }

    #[test]
    fn an_unarmed_place_does_nothing() {
        hit("ledger.commit.before");
        assert!(io("ledger.commit.before").is_ok());
    }

    #[test]
    fn a_plan_is_understood() {
        let plan = parse("ledger.commit.before=kill@3; artifact.sync=error@2+;uplink.reconnect=sleep:50 ;").unwrap();
        let said: Vec<_> = plan.iter().map(|point| (point.name, point.action, point.nth, point.stays)).collect();
        assert_eq!(
            said,
            [
                ("ledger.commit.before", Action::Kill, 3, false),
                ("artifact.sync", Action::Error, 2, true),
                ("uplink.reconnect", Action::Sleep(Duration::from_millis(50)), 1, false),
            ]
        );
        let acts: Vec<bool> = (0..4).map(|_| plan[1].acts()).collect();
        assert_eq!(acts, [false, true, true, true]);
        let acts: Vec<bool> = (0..4).map(|_| plan[0].acts()).collect();
        assert_eq!(acts, [false, false, true, false]);
    }

    #[test]
    fn a_plan_that_is_not_understood_is_refused_in_words() {
        for (text, word) in [
            ("ledger.commit.before", "no `=`"),
            ("ledger.nowhere=kill", "no such failpoint"),
            ("artifact.sync=explode", "no such action"),
            ("artifact.sync=kill@0", "1 or more"),
            ("artifact.sync=sleep:soon", "no number"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(text), "{error}");
        }
    }
}
