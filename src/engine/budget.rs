//! How much memory there is to give.

use std::fs;

/// Bytes that this process can still take: what the system has available, within its control group's limit. `None`
/// where the system does not say.
pub(super) fn available_memory() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.trim().strip_suffix("kB")?;
    let system = kib.trim().parse::<u64>().ok()? * 1024;
    Some(cgroup_room().map_or(system, |room| room.min(system)))
}

/// What is left of the control group's limit (version 2); `None` without a limit.
fn cgroup_room() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?.trim_start_matches('/').to_owned();
    let read = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/sys/fs/cgroup/{path}/{name}")).ok()?.trim().parse().ok()
    };
    // "max" is no number, and no limit.
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}
