//! Capabilities of other processes, from /proc.

use std::fs;

/// `CAP_NET_RAW` of linux/capability.h.
pub const NET_RAW: u32 = 13;

/// Whether the process has the capability, or gets it with the next program that it starts: as root, from its bounding set. A
/// process that is gone has none.
pub fn may_get(pid: u32, capability: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| in_status(&status, capability))
}

fn in_status(status: &str, capability: u32) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    // What cannot be read counts as all.
    let set = |name: &str| {
        let hex = field(name).map(str::trim);
        hex.and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .unwrap_or(u64::MAX)
    };
    let has = |name: &str| set(name) >> capability & 1 != 0;
    let root = field("Uid:").is_none_or(|ids| ids.split_whitespace().any(|id| id == "0"));
    let no_more = field("NoNewPrivs:").is_some_and(|value| value.trim() == "1");
    has("CapPrm:") || has("CapInh:") || root && !no_more && has("CapBnd:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uid: u32, permitted: u64, bounding: u64, no_more: u32) -> String {
        format!(
            "Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nCapInh:\t0\nCapPrm:\t{permitted:016x}\n\
             CapEff:\t0\nCapBnd:\t{bounding:016x}\nNoNewPrivs:\t{no_more}\n"
        )
    }

    #[test]
    fn who_holds_it_or_gets_it() {
        const RAW: u64 = 1 << NET_RAW;
        for (status, may) in [
            (status(0, RAW, RAW, 0), true),
            (status(1000, RAW, RAW, 1), true),
            (status(0, 0, RAW, 0), true),
            (status(0, 0, RAW, 1), false),
            (status(0, 0, !RAW, 0), false),
            (status(1000, 0, RAW, 0), false),
            (String::new(), true),
        ] {
            assert_eq!(in_status(&status, NET_RAW), may, "{status}");
        }
    }
}
