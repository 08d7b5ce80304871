//! The oldest kernel that the kernel half runs on, and what is said on an older one.

use anyhow::Error;

use super::Usage;
use crate::config::ConfigErrors;

/// Linux 5.15: sk_lookup, ring buffer, netns cookies.
const FLOOR: (u32, u32) = (5, 15);

/// For whoever runs an older one.
pub const NEEDED: &str = "the kernel half needs Linux 5.15; the proxy alone runs anywhere";

/// The release of the running kernel, and whether it is new enough by its number.
pub fn release() -> (String, bool) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let met = is_met(&release);
    (release, met)
}

/// The error of a command that needs the kernel half, with the kernel's age as the reason if that may be it. Nothing is refused
/// by number alone: vendors' kernels have much that is newer.
pub fn explain(error: Error) -> Error {
    let (release, met) = release();
    if met || error.is::<Usage>() || error.is::<ConfigErrors>() {
        return error;
    }
    error.context(format!("this is Linux {release}, and {NEEDED}"))
}

fn is_met(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|n| n.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= FLOOR,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_by_their_numbers() {
        assert!(is_met("5.15.0-91-generic") && is_met("6.1.0-56-cloud-amd64"));
        assert!(!is_met("5.10.0-46-cloud-amd64") && !is_met("4.18.0") && !is_met("unknown"));
    }
}
