//! Available memory of this process: what the system has, within the limits of its control groups.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that this process can still take. `None` where the system does not say.
pub fn available() -> Option<u64> {
    available_below(Path::new("/"))
}

/// What is left of `available` bytes beside `weights` that are mapped from a file. Their pages count as available, since
/// the system may drop them, but the next step reads them back. A model larger than the memory runs nevertheless, from
/// the disk: a quarter is left to it.
pub fn beside_mapped(weights: u64, available: u64) -> u64 {
    available.saturating_sub(weights).max(available / 4)
}

/// [`available`], by the files of `/proc` and `/sys` below `root`.
fn available_below(root: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.trim().strip_suffix("kB")?;
    let system = kib.trim().parse::<u64>().ok()? * 1024;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    let rooms = [&V1, &V2].into_iter().flat_map(|version| version.rooms(root, &groups, &mounts));
    Some(rooms.fold(system, u64::min))
}

/// How one version of control groups is mounted, and how its files are named.
struct Version {
    file_system: &'static str,
    /// Where it is mounted by convention.
    mount: &'static str,
    /// The controller that the line of `/proc/self/cgroup` and the mount are of. Version 2 has one hierarchy for all.
    controller: &'static str,
    limits: &'static [&'static str],
    usage: &'static str,
    /// Entries of `memory.stat`: page cache that the system takes back before it refuses memory.
    reclaimable: [&'static str; 2],
    /// Entry of `memory.stat`: the least limit of a group and its parents, of which a container may see nothing else.
    inherited_limit: Option<&'static str>,
}

const V1: Version = Version {
    file_system: "cgroup",
    mount: "sys/fs/cgroup/memory",
    controller: "memory",
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file", "total_active_file"],
    inherited_limit: Some("hierarchical_memory_limit"),
};

const V2: Version = Version {
    file_system: "cgroup2",
    mount: "sys/fs/cgroup",
    controller: "",
    // Above `memory.high` a process is slowed down until it hardly runs.
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    reclaimable: ["inactive_file", "active_file"],
    inherited_limit: None,
};

impl Version {
    /// What is left in the process's group and in each of its parents that has a limit.
    fn rooms(&self, root: &Path, groups: &str, mounts: &str) -> Vec<u64> {
        let Some(group) = self.group(groups) else { return Vec::new() };
        let conventional = (PathBuf::from(self.mount), "/");
        let mounts = mounts.lines().filter_map(|line| self.mounted(line)).chain([conventional]);
        let folders = mounts.flat_map(|(mount, top)| folders(&root.join(mount), top, group));
        folders.filter_map(|folder| self.room(&folder)).collect()
    }

    /// Path of the process's group in the hierarchy, by `/proc/self/cgroup`.
    fn group<'a>(&self, groups: &'a str) -> Option<&'a str> {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            controllers.split(',').any(|controller| controller == self.controller).then_some(path)
        })
    }

    /// Mount point of the hierarchy, without the leading slash, and the group that is mounted there, if a line of
    /// `/proc/self/mountinfo` is about it.
    fn mounted<'a>(&self, line: &'a str) -> Option<(PathBuf, &'a str)> {
        let (mount, source) = line.split_once(" - ")?;
        let (file_system, options) = (source.split(' ').next()?, source.rsplit(' ').next()?);
        let right = file_system == self.file_system
            && (self.controller.is_empty() || options.split(',').any(|option| option == self.controller));
        let mut fields = mount.split(' ').skip(3);
        let (top, point) = (fields.next()?, fields.next()?);
        right.then(|| (PathBuf::from(point.trim_start_matches('/')), top))
    }

    /// What is left of the limits of one group.
    fn room(&self, group: &Path) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(group.join(name)).ok();
        // "max" is no number, and no limit.
        let number = |name: &&str| read(name)?.trim().parse::<u64>().ok();
        let stat = read("memory.stat").unwrap_or_default();
        let entry = |name: &str| {
            let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.and_then(|value| value.trim().parse::<u64>().ok())
        };
        let limits = self.limits.iter().filter_map(number);
        let limit = limits.chain(self.inherited_limit.and_then(entry)).min()?;
        let cache = self.reclaimable.iter().filter_map(|name| entry(name)).sum();
        let used = number(&self.usage).unwrap_or(0).saturating_sub(cache);
        Some(limit.saturating_sub(used))
    }
}

/// The folders of a group and its parents below `mount`, where the group `top` is mounted.
fn folders(mount: &Path, top: &str, group: &str) -> Vec<PathBuf> {
    // A container may be told its path on the host, of which its mount shows the lower part or nothing.
    let below = match group.strip_prefix(top.trim_end_matches('/')) {
        Some(below) if below.is_empty() || below.starts_with('/') => below,
        _ => group,
    };
    let below = Path::new(below.trim_start_matches('/'));
    // A group outside of the namespace: nothing below the mount is its parent but the mount itself.
    let outside = below.components().any(|part| part == std::path::Component::ParentDir);
    let ancestors = below.ancestors().filter(|path| !outside || path.as_os_str().is_empty());
    ancestors.map(|path| mount.join(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    /// What the system has in every test.
    const SYSTEM: u64 = 8192 * MIB;

    /// [`available_below`] a folder with these files.
    fn available_with(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        available_below(root.path())
    }

    /// As [`available_with`], in MiB, with [`SYSTEM`] and the process's groups.
    fn mib(groups: &str, files: &[(&str, &str)]) -> u64 {
        let meminfo = "MemTotal: 9000000 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n";
        let own = [("proc/meminfo", meminfo), ("proc/self/cgroup", groups)];
        available_with(&[&own, files].concat()).unwrap() / MIB
    }

    #[test]
    fn without_limits_all_that_the_system_has_is_available() {
        assert_eq!(mib("", &[]), SYSTEM / MIB);
        assert_eq!(mib("0::/\n", &[]), SYSTEM / MIB);
        let unlimited = [
            ("sys/fs/cgroup/a/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.high", "max\n"),
            ("sys/fs/cgroup/a/memory.current", "1048576\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1048576\n"),
        ];
        assert_eq!(mib("4:memory:/a\n0::/a\n", &unlimited), SYSTEM / MIB);
        assert_eq!(available_with(&[]), None);
        assert_eq!(available_with(&[("proc/meminfo", "MemTotal: 1 kB\n")]), None);
    }

    #[test]
    fn mapped_weights_are_not_free() {
        assert_eq!(beside_mapped(600, 1000), 400);
        assert_eq!(beside_mapped(2000, 1000), 250);
        assert_eq!(beside_mapped(0, 0), 0);
    }

    #[test]
    fn page_cache_counts_as_free() {
        let files = [
            ("sys/fs/cgroup/a/memory.max", "2147483648\n"),
            ("sys/fs/cgroup/a/memory.current", "2126512128\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 1\nfile 9\ninactive_file 1887436800\nactive_file 104857600\n"),
        ];
        assert_eq!(mib("0::/a\n", &files), 2048 - (2028 - 1800 - 100));
        // More cache than usage, since both change while they are read.
        let more = ("sys/fs/cgroup/a/memory.stat", "inactive_file 9887436800\n");
        assert_eq!(mib("0::/a\n", &[files[0], files[1], more]), 2048);
        assert_eq!(mib("0::/a\n", &files[..2]), 20);
        assert_eq!(mib("0::/a\n", &files[..1]), 2048);
    }

    #[test]
    fn the_least_room_of_a_group_and_its_parents_counts() {
        let files = [
            ("sys/fs/cgroup/a/memory.max", "2147483648"),
            ("sys/fs/cgroup/a/memory.current", "209715200"),
            ("sys/fs/cgroup/a/b/memory.max", "max"),
            ("sys/fs/cgroup/a/b/memory.current", "0"),
            ("sys/fs/cgroup/a/b/c/memory.max", "1073741824"),
            ("sys/fs/cgroup/a/b/c/memory.current", "104857600"),
            ("sys/fs/cgroup/a/z/memory.max", "0"),
        ];
        assert_eq!(mib("0::/a/b\n", &files), 1848);
        assert_eq!(mib("0::/a/b/c\n", &files), 924);
        // A group that is gone leaves its parents.
        assert_eq!(mib("0::/a/b/gone (deleted)\n", &files), 1848);
        assert_eq!(mib("0::/a/b\n", &[&files[..], &[("sys/fs/cgroup/a/b/memory.high", "1048576")]].concat()), 1);
    }

    #[test]
    fn version_1_has_its_own_files() {
        let files = [
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "2147483648"),
            ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "1073741824"),
            (
                "sys/fs/cgroup/memory/x/memory.stat",
                "cache 5\ntotal_inactive_file 524288000\ntotal_active_file 1048576\n",
            ),
        ];
        assert_eq!(mib("4:memory:/x\n0::/\n", &files), 1024 + 501);
        assert_eq!(mib("5:cpu:/y\n4:hugetlb,memory:/x/y\n", &files), 1024 + 501);
        assert_eq!(mib("4:memory_recursive:/x\n", &files), SYSTEM / MIB);
        // What a parent allows is in the statistics, even where the parent is not to be seen.
        let inherited = ("sys/fs/cgroup/memory/x/memory.stat", "hierarchical_memory_limit 1610612736\n");
        assert_eq!(mib("4:memory:/x\n", &[files[0], files[1], inherited]), 512);
    }

    #[test]
    fn both_versions_bind_on_a_hybrid_system() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let files = [
            ("proc/self/mountinfo", mounts),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "2147483648"),
            ("sys/fs/cgroup/unified/y/memory.max", "1073741824"),
        ];
        assert_eq!(mib("4:memory:/x\n0::/\n", &files), 2048);
        assert_eq!(mib("4:memory:/x\n0::/y\n", &files), 1024);
    }

    #[test]
    fn a_container_sees_the_lower_part_of_its_path() {
        let mounts = "35 31 0:32 /docker/1 /groups/memory rw - cgroup cgroup rw,memory\n";
        let files = [
            ("proc/self/mountinfo", mounts),
            ("groups/memory/memory.limit_in_bytes", "2147483648"),
            ("groups/memory/sub/memory.limit_in_bytes", "1073741824"),
        ];
        assert_eq!(mib("4:memory:/docker/1\n", &files), 2048);
        assert_eq!(mib("4:memory:/docker/1/sub\n", &files), 1024);
        assert_eq!(mib("4:memory:/docker/12/sub\n", &files), 2048);
        // Outside of the namespace.
        assert_eq!(mib("4:memory:/../other/sub\n", &files), 2048);
        // Mounted where it always is, with the path of the host.
        let files = [("sys/fs/cgroup/memory.max", "1073741824")];
        assert_eq!(mib("0::/docker/1\n", &files), 1024);
    }
}
