//! What the engine is asked to make: the `docker run` line of contract 6.5 as a body of the API.

use super::super::spec::ContainerSpec;
use super::DockerConfig;
use super::arguments::{self, ArgumentError};
use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, ResourcesUlimits};

const MB: u64 = 1024 * 1024;

/// The part that all containers have in common, checked once at start.
///
/// # Errors
/// When an extra argument cannot be honoured.
pub(super) fn template(config: &DockerConfig) -> Result<ContainerCreateBody, ArgumentError> {
    let own = |values: &[&str]| Some(values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
    let given = |values: &[String]| (!values.is_empty()).then(|| values.to_vec());
    let env = config.env.iter().filter_map(|entry| match entry.contains('=') {
        true => Some(entry.clone()),
        false => arguments::from_environment(entry),
    });
    let host = HostConfig {
        network_mode: Some(config.network.clone()),
        dns: given(&config.dns_servers),
        dns_search: given(&config.dns_search),
        dns_options: given(&config.dns_options),
        cap_drop: own(&["NET_RAW", "NET_ADMIN"]),
        ulimits: Some(vec![ResourcesUlimits {
            name: Some("nofile".to_owned()),
            soft: Some(1024),
            hard: Some(1024),
        }]),
        pids_limit: Some(1024),
        log_config: config
            .json_file_logs
            .then(|| HostConfigLogConfig { typ: Some("json-file".to_owned()), config: None }),
        ..HostConfig::default()
    };
    let mut body =
        ContainerCreateBody { env: Some(env.collect()), host_config: Some(host), ..Default::default() };
    arguments::apply(&config.extra_args, &mut body)?;
    Ok(body)
}

/// The body for one container.
pub(super) fn container(
    template: &ContainerCreateBody,
    config: &DockerConfig,
    spec: &ContainerSpec,
) -> ContainerCreateBody {
    let mut body = template.clone();
    body.image = Some(spec.image.clone());
    let host = body.host_config.get_or_insert_default();
    let bytes = i64::try_from(spec.memory_mb.saturating_mul(MB)).unwrap_or(i64::MAX);
    host.memory = Some(bytes);
    // What the operator said in extra arguments goes before what follows from the memory.
    host.memory_swap.get_or_insert(bytes);
    host.cpu_shares.get_or_insert(cpu_shares(config.user_memory_mb, spec.memory_mb));
    if host.nano_cpus.is_none()
        && let Some(cpus) = config.user_cpus
    {
        host.nano_cpus = Some(nano_cpus(cpus, config.user_memory_mb, spec.memory_mb));
    }
    body
}

/// How many containers of this size fit; upstream divides whole numbers. At least 1.
fn fitting(user_memory_mb: u64, memory_mb: u64) -> u64 {
    (user_memory_mb / memory_mb.max(1)).max(1)
}

/// `max(1024 / (userMemory / M), 2)`.
fn cpu_shares(user_memory_mb: u64, memory_mb: u64) -> i64 {
    i64::try_from((1024 / fitting(user_memory_mb, memory_mb)).max(2)).unwrap_or(1024)
}

/// `max(round to 5 decimals (userCpus / (userMemory / M)), 0.01)` in billionths.
fn nano_cpus(user_cpus: f64, user_memory_mb: u64, memory_mb: u64) -> i64 {
    #[allow(clippy::cast_precision_loss, reason = "counts of containers are small")]
    let share = user_cpus / fitting(user_memory_mb, memory_mb) as f64;
    let rounded = ((share * 1e5).round() / 1e5).max(0.01);
    #[allow(clippy::cast_possible_truncation, reason = "a number of processors; `as` saturates")]
    let nano = (rounded * 1e9).round() as i64;
    nano
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{ContainerSpec, PullPolicy};
    use crate::pool::ContainerId;

    fn spec(memory_mb: u64) -> ContainerSpec {
        ContainerSpec {
            id: ContainerId(12),
            name: "wsk0_12_guest_hello".to_owned(),
            image: "openwhisk/action-nodejs-v20:nightly".to_owned(),
            pull: PullPolicy::Never,
            memory_mb,
        }
    }

    #[test]
    fn the_line_of_the_contract() {
        let config = DockerConfig {
            user_memory_mb: 2048,
            env: vec!["__OW_API_HOST=https://api.example.org".to_owned(), "K=V".to_owned()],
            dns_servers: vec!["10.0.0.2".to_owned()],
            ..DockerConfig::default()
        };
        let body = container(&template(&config).expect("template"), &config, &spec(256));
        assert_eq!(body.image.as_deref(), Some("openwhisk/action-nodejs-v20:nightly"));
        assert_eq!(body.env, Some(config.env));
        assert_eq!(body.user, None);
        let host = body.host_config.expect("host config");
        assert_eq!(host.cpu_shares, Some(128));
        assert_eq!((host.memory, host.memory_swap), (Some(256 << 20), Some(256 << 20)));
        assert_eq!(host.network_mode.as_deref(), Some("bridge"));
        assert_eq!(host.dns, Some(vec!["10.0.0.2".to_owned()]));
        assert_eq!((host.dns_search, host.dns_options, host.nano_cpus), (None, None, None));
        assert_eq!(host.cap_drop, Some(vec!["NET_RAW".to_owned(), "NET_ADMIN".to_owned()]));
        assert_eq!(host.pids_limit, Some(1024));
        assert_eq!(host.log_config.and_then(|log| log.typ).as_deref(), Some("json-file"));
        assert_eq!(host.readonly_rootfs, None);
    }

    #[test]
    fn no_driver_unless_the_log_store_asks() {
        let config = DockerConfig { json_file_logs: false, ..DockerConfig::default() };
        assert_eq!(template(&config).expect("template").host_config.expect("host config").log_config, None);
    }

    #[test]
    fn shares_follow_memory() {
        // Figures of upstream's own computation, whole numbers throughout.
        for (user, memory, shares) in [
            (1024, 256, 256),
            (2048, 256, 128),
            (1000, 300, 341),
            (1 << 20, 1, 2),
            (256, 512, 1024),
            (256, 0, 4),
        ] {
            assert_eq!(cpu_shares(user, memory), shares, "{memory} of {user}");
        }
    }

    #[test]
    fn processors_follow_memory() {
        for (cpus, user, memory, nano) in [
            (4.0, 1024, 256, 1_000_000_000),
            (1.0, 1024, 341, 333_330_000),
            (0.1, 100_000, 100, 10_000_000),
            (2.0, 256, 512, 2_000_000_000),
        ] {
            assert_eq!(nano_cpus(cpus, user, memory), nano, "{cpus} for {memory} of {user}");
        }
    }

    #[test]
    fn extra_arguments_go_first() {
        let config = DockerConfig {
            user_cpus: Some(4.0),
            extra_args: [("cpus".to_owned(), vec!["0.5".to_owned()])].into(),
            ..DockerConfig::default()
        };
        let body = container(&template(&config).expect("template"), &config, &spec(256));
        assert_eq!(body.host_config.expect("host config").nano_cpus, Some(500_000_000));
    }
}
