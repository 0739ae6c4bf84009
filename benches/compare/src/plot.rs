//! A picture of the main ratios.

use crate::results::Run;

pub fn svg(_run: &Run) -> String {
    String::new()
}
