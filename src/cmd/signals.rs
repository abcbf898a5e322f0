//! SIGINT and SIGTERM: the first asks for an orderly stop, the second exits now.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::shutdown::Shutdown;

/// Exit code of a stop that could not wait (128 + SIGTERM).
const EXIT_FORCED: i32 = 143;

/// Turn the first stop signal into a request and the second into an exit.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn stop_on_signal(shutdown: &Shutdown) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let shutdown = shutdown.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for _ in signals.forever() {
            if shutdown.is_requested() {
                std::process::exit(EXIT_FORCED);
            }
            shutdown.request();
        }
    })?;
    Ok(())
}
