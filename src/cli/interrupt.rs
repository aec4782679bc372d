//! Ctrl-C.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

/// Ctrl-C handling: end the program at once, or note it while there is something to finish. A second Ctrl-C always ends
/// the program.
pub struct Interrupt {
    noted: Arc<AtomicBool>,
}

impl Interrupt {
    /// Ctrl-C ends the program with exit code 130.
    pub fn install() -> io::Result<Self> {
        let noted = Arc::new(AtomicBool::new(true));
        flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&noted))?;
        flag::register(SIGINT, Arc::clone(&noted))?;
        Ok(Self { noted })
    }

    /// From now on the next Ctrl-C is noted.
    pub fn hold(&self) {
        self.noted.store(false, Ordering::SeqCst);
    }

    /// From now on Ctrl-C ends the program. True where one was noted since [`Interrupt::hold`].
    pub fn release(&self) -> bool {
        self.noted.swap(true, Ordering::SeqCst)
    }

    /// Whether one was noted since [`Interrupt::hold`].
    pub fn noted(&self) -> bool {
        self.noted.load(Ordering::SeqCst)
    }
}
