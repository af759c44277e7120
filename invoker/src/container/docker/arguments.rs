//! `container-factory.container-args.extra-args`: flags of `docker run`, as fields of the API.
//!
//! Upstream hands them to the client as they are. Those that make no sense for a container of ours, or that are not
//! known here, are refused at start: a flag that is silently ignored may be the one that isolates.

use bollard::models::{
    ContainerCreateBody, DeviceMapping, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig,
    ResourcesUlimits,
};
use std::collections::{BTreeMap, HashMap};

/// An extra argument that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// The flag is not known.
    #[error("extra-args: unknown flag --{0}")]
    Unknown(String),
    /// The flag would take the container out of our hands.
    #[error("extra-args: --{flag} cannot be used: {why}")]
    Refused {
        /// The flag.
        flag: String,
        /// Why not.
        why: &'static str,
    },
    /// The value cannot be read.
    #[error("extra-args: --{flag} {value}: expected {expected}")]
    Value {
        /// The flag.
        flag: String,
        /// What was given.
        value: String,
        /// What it should look like.
        expected: &'static str,
    },
}

/// Applies all of `arguments`.
///
/// # Errors
/// The first that cannot be honoured.
pub(super) fn apply(
    arguments: &BTreeMap<String, Vec<String>>,
    body: &mut ContainerCreateBody,
) -> Result<(), ArgumentError> {
    for (flag, values) in arguments {
        for value in values {
            one(flag.trim_start_matches('-'), value, body)?;
        }
    }
    Ok(())
}

fn one(flag: &str, value: &str, body: &mut ContainerCreateBody) -> Result<(), ArgumentError> {
    let wrong = |expected| ArgumentError::Value { flag: flag.to_owned(), value: value.to_owned(), expected };
    let refused = |why| Err(ArgumentError::Refused { flag: flag.to_owned(), why });
    let integer = || value.parse::<i64>().map_err(|_| wrong("a whole number"));
    let boolean = || match value {
        "" | "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(wrong("true or false")),
    };
    let bytes = || size(value).ok_or_else(|| wrong("a size such as 64m"));
    let pair = || value.split_once('=').ok_or_else(|| wrong("KEY=VALUE"));
    let text = || Some(value.to_owned());

    match flag {
        "env" | "e" => {
            // As the client does: a name alone takes its value from our own environment.
            let entry = if value.contains('=') { text() } else { from_environment(value) };
            body.env.get_or_insert_default().extend(entry);
            return Ok(());
        }
        "label" | "l" => {
            let (key, label) = value.split_once('=').unwrap_or((value, ""));
            body.labels.get_or_insert_default().insert(key.to_owned(), label.to_owned());
            return Ok(());
        }
        "hostname" | "h" => {
            body.hostname = text();
            return Ok(());
        }
        "domainname" => {
            body.domainname = text();
            return Ok(());
        }
        "user" | "u" => {
            body.user = text();
            return Ok(());
        }
        "workdir" | "w" => {
            body.working_dir = text();
            return Ok(());
        }
        "stop-signal" => {
            body.stop_signal = text();
            return Ok(());
        }
        "stop-timeout" => {
            body.stop_timeout = Some(integer()?);
            return Ok(());
        }
        "entrypoint" => {
            body.entrypoint = Some(vec![value.to_owned()]);
            return Ok(());
        }
        _ => {}
    }

    let host: &mut HostConfig = body.host_config.get_or_insert_default();
    match flag {
        "add-host" => push(&mut host.extra_hosts, value),
        "annotation" => put(&mut host.annotations, pair()?),
        "blkio-weight" => {
            host.blkio_weight = Some(value.parse().map_err(|_| wrong("a number from 10 to 1000"))?)
        }
        "cap-add" => push(&mut host.cap_add, value),
        "cap-drop" => push(&mut host.cap_drop, value),
        "cgroup-parent" => host.cgroup_parent = text(),
        "cgroupns" => {
            host.cgroupns_mode = Some(match value {
                "host" => HostConfigCgroupnsModeEnum::HOST,
                "private" => HostConfigCgroupnsModeEnum::PRIVATE,
                _ => return Err(wrong("host or private")),
            });
        }
        "cpu-period" => host.cpu_period = Some(integer()?),
        "cpu-quota" => host.cpu_quota = Some(integer()?),
        "cpu-shares" | "c" => host.cpu_shares = Some(integer()?),
        "cpus" => host.nano_cpus = Some(nano_cpus(value).ok_or_else(|| wrong("a number such as 1.5"))?),
        "cpuset-cpus" => host.cpuset_cpus = text(),
        "cpuset-mems" => host.cpuset_mems = text(),
        "device" => host.devices.get_or_insert_default().push(device(value)),
        "device-cgroup-rule" => push(&mut host.device_cgroup_rules, value),
        "dns" => push(&mut host.dns, value),
        "dns-option" | "dns-opt" => push(&mut host.dns_options, value),
        "dns-search" => push(&mut host.dns_search, value),
        "group-add" => push(&mut host.group_add, value),
        "init" => host.init = Some(boolean()?),
        "ipc" => host.ipc_mode = text(),
        "log-driver" => log_config(host).typ = text(),
        "log-opt" => {
            let (key, option) = pair()?;
            log_config(host).config.get_or_insert_default().insert(key.to_owned(), option.to_owned());
        }
        "memory-reservation" => host.memory_reservation = Some(bytes()?),
        "memory-swap" => host.memory_swap = Some(if value == "-1" { -1 } else { bytes()? }),
        "memory-swappiness" => host.memory_swappiness = Some(integer()?),
        "oom-score-adj" => host.oom_score_adj = Some(integer()?),
        "pids-limit" => host.pids_limit = Some(integer()?),
        "privileged" => host.privileged = Some(boolean()?),
        "read-only" => host.readonly_rootfs = Some(boolean()?),
        "runtime" => host.runtime = text(),
        "security-opt" => push(&mut host.security_opt, value),
        "shm-size" => host.shm_size = Some(bytes()?),
        "storage-opt" => put(&mut host.storage_opt, pair()?),
        "sysctl" => put(&mut host.sysctls, pair()?),
        "tmpfs" => put(&mut host.tmpfs, value.split_once(':').unwrap_or((value, ""))),
        "ulimit" => {
            let limit = ulimit(value).ok_or_else(|| wrong("NAME=SOFT[:HARD]"))?;
            let all = host.ulimits.get_or_insert_default();
            // As with the client, the last of a name counts.
            all.retain(|other| other.name != limit.name);
            all.push(limit);
        }
        "userns" => host.userns_mode = text(),
        "uts" => host.uts_mode = text(),
        "volume" | "v" => push(&mut host.binds, value),
        "volume-driver" => host.volume_driver = text(),
        "volumes-from" => push(&mut host.volumes_from, value),
        "restart" => return refused("a container that ended is replaced, never restarted"),
        "rm" => return refused("the container's end is looked at before it is removed"),
        "pid" => return refused("the container's processes are told apart by their own pid namespace"),
        "oom-kill-disable" => return refused("a container that waits for memory for ever never answers"),
        "name" | "detach" | "d" | "network" | "net" | "memory" | "m" => {
            return refused("it is set by the invoker");
        }
        "interactive" | "i" | "tty" | "t" | "attach" | "a" => {
            return refused("nobody sits at the container's terminal");
        }
        "publish" | "p" | "publish-all" | "P" => return refused("containers share no ports of the host"),
        _ => return Err(ArgumentError::Unknown(flag.to_owned())),
    }
    Ok(())
}

/// `KEY=VALUE` with the value of our own environment, if it has one.
pub(super) fn from_environment(key: &str) -> Option<String> {
    std::env::var(key).ok().map(|value| format!("{key}={value}"))
}

fn push(list: &mut Option<Vec<String>>, value: &str) {
    list.get_or_insert_default().push(value.to_owned());
}

fn put(map: &mut Option<HashMap<String, String>>, (key, value): (&str, &str)) {
    map.get_or_insert_default().insert(key.to_owned(), value.to_owned());
}

fn log_config(host: &mut HostConfig) -> &mut HostConfigLogConfig {
    host.log_config.get_or_insert_default()
}

fn nano_cpus(value: &str) -> Option<i64> {
    let cpus: f64 = value.parse().ok().filter(|cpus: &f64| cpus.is_finite() && (0.0..=1e6).contains(cpus))?;
    #[allow(clippy::cast_possible_truncation, reason = "at most 1e15")]
    Some((cpus * 1e9).round() as i64)
}

/// `PATH[:PATH[:rwm]]`; the second part may be the permissions.
fn device(value: &str) -> DeviceMapping {
    let is_mode = |part: &str| !part.is_empty() && part.bytes().all(|b| b"rwm".contains(&b));
    let mut parts = value.splitn(3, ':');
    let host = parts.next().unwrap_or_default();
    let (inside, mode) = match (parts.next(), parts.next()) {
        (Some(second), Some(third)) => (second, third),
        (Some(second), None) if is_mode(second) => (host, second),
        (Some(second), None) => (second, "rwm"),
        (None, _) => (host, "rwm"),
    };
    DeviceMapping {
        path_on_host: Some(host.to_owned()),
        path_in_container: Some(inside.to_owned()),
        cgroup_permissions: Some(mode.to_owned()),
    }
}

fn ulimit(value: &str) -> Option<ResourcesUlimits> {
    let (name, limits) = value.split_once('=')?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    Some(ResourcesUlimits {
        name: Some(name.to_owned()).filter(|name| !name.is_empty()),
        soft: Some(soft.parse().ok()?),
        hard: Some(hard.parse().ok()?),
    })
}

/// `<number>[b|k|m|g]` in powers of 1024, as the client reads sizes.
fn size(value: &str) -> Option<i64> {
    let lower = value.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match &lower[digits.len()..] {
        "" | "b" => 1,
        "k" | "kb" => 1 << 10,
        "m" | "mb" => 1 << 20,
        "g" | "gb" => 1 << 30,
        _ => return None,
    };
    digits.parse::<i64>().ok()?.checked_mul(factor).filter(|bytes| *bytes >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(arguments: &[(&str, &[&str])]) -> Result<ContainerCreateBody, ArgumentError> {
        let arguments = arguments
            .iter()
            .map(|(flag, values)| ((*flag).to_owned(), values.iter().map(|v| (*v).to_owned()).collect()))
            .collect();
        let mut body = ContainerCreateBody::default();
        apply(&arguments, &mut body)?;
        Ok(body)
    }

    #[test]
    fn flags_become_fields() {
        let body = applied(&[
            ("security-opt", &["no-new-privileges", "seccomp=unconfined"]),
            ("ulimit", &["nofile=512", "nproc=10:20"]),
            ("log-opt", &["max-size=10m"]),
            ("tmpfs", &["/tmp:size=1m", "/run"]),
            ("shm-size", &["64m"]),
            ("cpus", &["1.5"]),
            ("device", &["/dev/kvm", "/dev/a:/dev/b:r", "/dev/c:rw"]),
            ("label", &["a=b", "c"]),
            ("--read-only", &[""]),
        ])
        .expect("known flags");
        let host = body.host_config.expect("host config");
        assert_eq!(host.security_opt.expect("options").len(), 2);
        let ulimits = host.ulimits.expect("ulimits");
        assert_eq!((ulimits[0].soft, ulimits[0].hard), (Some(512), Some(512)));
        assert_eq!((ulimits[1].soft, ulimits[1].hard), (Some(10), Some(20)));
        let log = host.log_config.expect("log").config.expect("options");
        assert_eq!(log.get("max-size").map(String::as_str), Some("10m"));
        let tmpfs = host.tmpfs.expect("tmpfs");
        assert_eq!(tmpfs.get("/tmp").map(String::as_str), Some("size=1m"));
        assert_eq!(tmpfs.get("/run").map(String::as_str), Some(""));
        assert_eq!(host.shm_size, Some(64 << 20));
        assert_eq!(host.nano_cpus, Some(1_500_000_000));
        let devices = host.devices.expect("devices");
        let parts = |d: &DeviceMapping| {
            [&d.path_on_host, &d.path_in_container, &d.cgroup_permissions]
                .map(|p| p.clone().unwrap_or_default())
        };
        assert_eq!(parts(&devices[0]), ["/dev/kvm", "/dev/kvm", "rwm"]);
        assert_eq!(parts(&devices[1]), ["/dev/a", "/dev/b", "r"]);
        assert_eq!(parts(&devices[2]), ["/dev/c", "/dev/c", "rw"]);
        assert_eq!(host.readonly_rootfs, Some(true));
        assert_eq!(body.labels.expect("labels").len(), 2);
    }

    #[test]
    fn the_last_limit_of_a_name_counts() {
        let host = applied(&[("ulimit", &["nofile=1", "nofile=2"])])
            .expect("known")
            .host_config
            .expect("host config");
        assert_eq!(host.ulimits.expect("ulimits").iter().map(|u| u.soft).collect::<Vec<_>>(), [Some(2)]);
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let message = |arguments| applied(arguments).expect_err("refused").to_string();
        assert_eq!(message(&[("gpu-magic", &["1"])]), "extra-args: unknown flag --gpu-magic");
        assert!(message(&[("restart", &["always"])]).starts_with("extra-args: --restart cannot be used: "));
        assert_eq!(
            message(&[("ulimit", &["nofile"])]),
            "extra-args: --ulimit nofile: expected NAME=SOFT[:HARD]"
        );
        assert_eq!(
            message(&[("shm-size", &["64q"])]),
            "extra-args: --shm-size 64q: expected a size such as 64m"
        );
        assert_eq!(message(&[("cpus", &["NaN"])]), "extra-args: --cpus NaN: expected a number such as 1.5");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", Some(0)), ("7b", Some(7)), ("2K", Some(2048)), ("1g", Some(1 << 30))] {
            assert_eq!(size(text), bytes, "{text}");
        }
        for text in ["", "m", "-1m", "9223372036854775807g", "1.5g"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
