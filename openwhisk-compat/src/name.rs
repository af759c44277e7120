//! Names of containers and topics (contract 1.4, 6.5).

use crate::message::{ControllerId, InvokerInstanceId};

/// `wsk<uniqueName><instance>`: what the names of all containers of this invoker begin with, followed by
/// `_`. Keeps letters, digits and `_ . -`.
pub fn container_prefix(instance: &InvokerInstanceId) -> String {
    let unique = instance.unique_name.as_deref().unwrap_or_default();
    let mut prefix = format!("wsk{unique}{}", instance.instance);
    prefix.retain(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    prefix
}

/// The name of container number `n`. `first` and `second` are `prewarm` and the kind for a stem cell,
/// otherwise invoking namespace and simple name of the action; only their letters, digits and `_` stay.
pub fn container_name(prefix: &str, n: u64, first: &str, second: &str) -> String {
    let plain =
        |text: &str| text.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    format!("{prefix}_{n}_{}_{}", plain(first), plain(second))
}

/// Whether `name` is that of a container of the invoker with this prefix: `<prefix>_<n>_...`. Docker's own
/// filter matches substrings and would also find `...wsk1_...` of another process. A leading slash, as
/// Docker's API writes it, is ignored.
pub fn is_own_container(prefix: &str, name: &str) -> bool {
    own_number(prefix, name).is_some()
}

/// The number in the name of a container of the invoker with this prefix. `None` for another's name, and for
/// a number that no invoker counts up to.
pub fn own_container_number(prefix: &str, name: &str) -> Option<u64> {
    own_number(prefix, name)?.parse().ok().filter(|number| *number <= u64::MAX / 2)
}

fn own_number<'a>(prefix: &str, name: &'a str) -> Option<&'a str> {
    let name = name.strip_prefix('/').unwrap_or(name);
    let rest = name.strip_prefix(prefix)?.strip_prefix('_')?;
    let (number, _) = rest.split_once('_')?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(number)
}

/// `<prefix>invoker<N>`: this invoker's own topic.
pub fn invoker_topic(prefix: &str, instance: u32) -> String {
    format!("{prefix}invoker{instance}")
}

/// `<prefix>completed<controller>`: where a controller reads acknowledgements. `None` if the controller's
/// name cannot be part of a topic's.
pub fn completed_topic(prefix: &str, controller: &ControllerId) -> Option<String> {
    let topic = format!("{prefix}completed{controller}");
    is_topic(&topic).then_some(topic)
}

/// `<prefix>health`: where pings go.
pub fn health_topic(prefix: &str) -> String {
    format!("{prefix}health")
}

/// `<userEventPrefix>events`: where user events go. The prefix is not that of the other topics.
pub fn events_topic(user_event_prefix: &str) -> String {
    format!("{user_event_prefix}events")
}

/// Whether Kafka takes `name` as a topic's.
pub fn is_topic(name: &str) -> bool {
    const LENGTH_MAX: usize = 249;
    (1..=LENGTH_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::ByteSize;

    fn invoker(instance: u32, unique: Option<&str>) -> InvokerInstanceId {
        InvokerInstanceId {
            unique_name: unique.map(str::to_owned),
            ..InvokerInstanceId::new(instance, ByteSize::from_mb(1024))
        }
    }

    #[test]
    fn container_names() {
        let prefix = container_prefix(&invoker(0, Some("0")));
        assert_eq!(container_name(&prefix, 1, "prewarm", "nodejs:20"), "wsk00_1_prewarm_nodejs20");
        let prefix = container_prefix(&invoker(0, None));
        assert_eq!(container_name(&prefix, 12, "guest", "hello"), "wsk0_12_guest_hello");
        assert_eq!(container_name(&prefix, 3, "whisk.system", "a b-ä@c"), "wsk0_3_whisksystem_abc");
        assert_eq!(container_prefix(&invoker(7, Some("node-1.a/ü"))), "wsknode-1.a7");
    }

    #[test]
    fn only_own_containers_are_recognised() {
        for (name, own) in [
            ("wsk1_1_prewarm_nodejs20", true),
            ("/wsk1_22_guest_hello", true),
            ("wsk11_1_guest_hello", false),
            ("xwsk1_1_guest_hello", false),
            ("wsk1_x_guest", false),
            ("wsk1__guest", false),
            ("wsk1_1", false),
            ("wsk1", false),
            ("", false),
        ] {
            assert_eq!(is_own_container("wsk1", name), own, "{name}");
        }
    }

    #[test]
    fn numbers_of_own_containers() {
        assert_eq!(own_container_number("wsk1", "/wsk1_12_guest_hello"), Some(12));
        assert_eq!(own_container_number("wsk1", "wsk1_0_prewarm_x"), Some(0));
        assert_eq!(own_container_number("wsk1", "wsk11_12_guest_hello"), None);
        let absurd = "wsk1_99999999999999999999_guest_hello";
        assert_eq!((is_own_container("wsk1", absurd), own_container_number("wsk1", absurd)), (true, None));
        assert_eq!(own_container_number("wsk1", "wsk1_18446744073709551615_guest_hello"), None);
    }

    #[test]
    fn topics() {
        assert_eq!(invoker_topic("p_", 3), "p_invoker3");
        assert_eq!(completed_topic("", &ControllerId::new("0")).as_deref(), Some("completed0"));
        assert_eq!(completed_topic("", &ControllerId::new("a/b")), None);
        assert_eq!(completed_topic("", &ControllerId::new("x".repeat(300))), None);
        assert_eq!((health_topic("a."), events_topic("u")), ("a.health".to_owned(), "uevents".to_owned()));
    }
}
