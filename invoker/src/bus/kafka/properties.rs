//! Kafka's client properties as OpenWhisk deployments write them (the Java client's names),
//! translated for librdkafka.
//!
//! Most names are the same in both. What differs is in [`RENAMED`]; what exists only in Java and
//! has no effect on behaviour that peers can see is in [`JAVA_ONLY`]; anything else is passed on
//! as it is, and librdkafka's refusal then names the property.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;

use super::super::BusError;

/// Java's name, librdkafka's name.
const RENAMED: &[(&str, &str)] = &[
    ("fetch.max.wait.ms", "fetch.wait.max.ms"),
    ("max.request.size", "message.max.bytes"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("compression.type", "compression.codec"),
    ("receive.buffer.bytes", "socket.receive.buffer.bytes"),
    ("send.buffer.bytes", "socket.send.buffer.bytes"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
];

/// Properties of the Java client that librdkafka neither has nor needs.
const JAVA_ONLY: &[&str] = &[
    "buffer.memory",
    "default.api.timeout.ms",
    "exclude.internal.topics",
    "key.deserializer",
    "key.serializer",
    "max.block.ms",
    "max.poll.records",
    "metadata.max.idle.ms",
    "partitioner.class",
    "ssl.keystore.type",
    "ssl.protocol",
    "ssl.provider",
    "ssl.truststore.password",
    "ssl.truststore.type",
    "value.deserializer",
    "value.serializer",
];

/// Which client a property is meant for: some are refused by the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Producer,
    Consumer,
    Admin,
}

/// Builds a client configuration: `defaults` first, then the operator's properties over it.
///
/// # Errors
/// [`BusError::Setting`] for a value that cannot be carried over, such as a JKS trust store.
pub(super) fn client_config(
    role: Role,
    hosts: &str,
    defaults: &[(&str, String)],
    operator: &[&BTreeMap<String, String>],
) -> Result<ClientConfig, BusError> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", hosts);
    for (name, value) in defaults {
        config.set(*name, value.as_str());
    }
    for properties in operator {
        for (name, value) in *properties {
            set(&mut config, role, name, value)?;
        }
    }
    Ok(config)
}

fn set(config: &mut ClientConfig, role: Role, name: &str, value: &str) -> Result<(), BusError> {
    let value = value.trim();
    match name {
        // Ansible passes empty strings for what is not set.
        _ if value.is_empty() && name != "ssl.endpoint.identification.algorithm" => {}
        _ if JAVA_ONLY.contains(&name) => {}
        "security.protocol" => {
            config.set("security.protocol", value.to_ascii_lowercase());
        }
        "ssl.endpoint.identification.algorithm" => {
            // Java says "no check" by an empty string.
            let algorithm = if value.is_empty() { "none" } else { value };
            config.set(name, algorithm.to_ascii_lowercase());
        }
        "ssl.truststore.location" => {
            config.set("ssl.ca.location", pem_trust_store(name, value)?);
        }
        "sasl.mechanism" => {
            config.set("sasl.mechanisms", value);
        }
        "sasl.jaas.config" => {
            let (user, password) = jaas_credentials(value).ok_or_else(|| BusError::Setting {
                name: name.to_owned(),
                value: "***".to_owned(),
                reason: "no username=\"..\" password=\"..\" found in it".to_owned(),
            })?;
            config.set("sasl.username", user);
            config.set("sasl.password", password);
        }
        // The Java client takes a request time-out everywhere; librdkafka's is for produce
        // requests, and `socket.timeout.ms` covers the rest.
        "request.timeout.ms" => {
            if role == Role::Producer {
                config.set(name, value);
            }
            config.set("socket.timeout.ms", value);
        }
        _ => {
            let name = RENAMED.iter().find(|(java, _)| *java == name).map_or(name, |(_, rd)| rd);
            config.set(name, value);
        }
    }
    Ok(())
}

/// librdkafka reads certificate authorities as PEM only.
fn pem_trust_store<'a>(name: &str, path: &'a str) -> Result<&'a str, BusError> {
    let refuse = |reason: String| BusError::Setting { name: name.to_owned(), value: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| refuse(format!("it cannot be read: {error}")))?;
    if bytes.windows(11).any(|window| window == b"-----BEGIN ") {
        return Ok(path);
    }
    Err(refuse(
        "it is not PEM; convert it once with `keytool -exportcert -rfc -keystore STORE -alias ALIAS` \
         (JKS) or `openssl pkcs12 -in STORE -nokeys -out ca.pem` (PKCS#12) and name the result"
            .to_owned(),
    ))
}

/// `…LoginModule required username="u" password="p";`
fn jaas_credentials(text: &str) -> Option<(String, String)> {
    let field = |key: &str| {
        let at = text.find(&format!("{key}=\""))? + key.len() + 2;
        let end = text[at..].find('"')?;
        Some(text[at..at + end].to_owned())
    };
    Some((field("username")?, field("password")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(pairs: &[(&str, &str)]) -> Result<ClientConfig, BusError> {
        let operator = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        client_config(Role::Consumer, "broker:9092", &[("fetch.wait.max.ms", "100".to_owned())], &[&operator])
    }

    #[test]
    fn javas_names_become_librdkafkas_and_win_over_defaults() {
        let config = built(&[
            ("fetch.max.wait.ms", "500"),
            ("max.poll.records", "8"),
            ("security.protocol", "PLAINTEXT"),
        ])
        .unwrap();
        assert_eq!(config.get("fetch.wait.max.ms"), Some("500"));
        assert_eq!(config.get("max.poll.records"), None);
        assert_eq!(config.get("security.protocol"), Some("plaintext"));
        assert_eq!(config.get("bootstrap.servers"), Some("broker:9092"));
    }

    #[test]
    fn empty_values_are_skipped_except_where_empty_has_a_meaning() {
        let config =
            built(&[("ssl.keystore.location", ""), ("ssl.endpoint.identification.algorithm", "")]).unwrap();
        assert_eq!(config.get("ssl.keystore.location"), None);
        assert_eq!(config.get("ssl.endpoint.identification.algorithm"), Some("none"));
    }

    #[test]
    fn a_trust_store_that_is_not_pem_is_refused_with_the_way_out() {
        let store = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(store.path(), [0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2]).unwrap();
        let error = built(&[("ssl.truststore.location", store.path().to_str().unwrap())]).unwrap_err();
        assert!(error.to_string().contains("keytool"), "{error}");
        std::fs::write(store.path(), "-----BEGIN CERTIFICATE-----\n").unwrap();
        built(&[("ssl.truststore.location", store.path().to_str().unwrap())]).unwrap();
    }

    #[test]
    fn jaas_credentials_are_taken_over_and_never_shown() {
        let jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"ow\" password=\"s3\";";
        let config = built(&[("sasl.jaas.config", jaas), ("sasl.mechanism", "PLAIN")]).unwrap();
        assert_eq!(config.get("sasl.username"), Some("ow"));
        assert_eq!(config.get("sasl.password"), Some("s3"));
        let error = built(&[("sasl.jaas.config", "secret nonsense")]).unwrap_err();
        assert!(!error.to_string().contains("nonsense"), "{error}");
    }
}
