//! What a calibrated camera adds to a located part: its size in millimetres and its colour.
//!
//! Pure: no I/O, no clock. Threads: the caller's. A measurement that cannot be made is `None`, never a guess.

mod colour;
mod size;

pub use colour::{ColourTable, NamedColour, measure_colour};
pub use size::{SIZE_LOG_FLOOR, log_likelihood, log_likelihood_shown, measure_size};
