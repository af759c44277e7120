//! Which invoker this is (contract 1.1, 1.2): a number that names the topic it reads.
//!
//! `--id` says it. Otherwise `--uniqueName` is the key under which ZooKeeper keeps it, in the layout of
//! upstream's Curator recipes, so that both kinds of invoker share one registry:
//!
//! ```text
//! /invokers/idAssignment/counter              SharedCount: 4 bytes, big-endian; its version is the lock
//! /invokers/idAssignment/mapping/<uniqueName> the id: big-endian two's complement, as few bytes as it takes
//! ```
//!
//! Upstream sets the counter first and creates the node after; two invokers that start together can both
//! count before either creates, and get one id. Here both happen in one transaction.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use zookeeper_client::{
    Acls, Client, Connector, CreateMode, CreateOptions, Error as ZkError, MultiWriteError,
};

const ROOT: &str = "/invokers/idAssignment/mapping";
const COUNTER: &str = "/invokers/idAssignment/counter";

/// Upstream's retry policy: every half second for five.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
const RETRY_WITHIN: Duration = Duration::from_secs(5);

/// One connection attempt.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// What the command line and the environment say about the id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdChoice {
    /// `--id`.
    pub id: Option<u32>,
    /// `--uniqueName`.
    pub unique_name: Option<String>,
    /// `--overwriteId`.
    pub overwrite: Option<u32>,
    /// `ZOOKEEPER_HOSTS`: `host:port,host:port`.
    pub zookeeper_hosts: Option<String>,
}

/// Why there is no id.
#[derive(Debug, thiserror::Error)]
pub enum IdError {
    /// Neither way is open.
    #[error("no id: give --id, or --uniqueName and ZOOKEEPER_HOSTS")]
    Unsaid,
    /// `ZOOKEEPER_HOSTS` is empty or half of a `host:port`.
    #[error("no id: ZOOKEEPER_HOSTS is '{hosts}', expected host:port[,host:port]")]
    Hosts {
        /// As configured.
        hosts: String,
    },
    /// The name cannot be that of a node.
    #[error("unique name '{name}' cannot be registered: it must not hold '/' or control characters")]
    Name {
        /// As given.
        name: String,
    },
    /// `--overwriteId` beyond the known invokers.
    #[error("cannot assign {id} to '{name}': not enough invokers, {known} are registered")]
    NotEnough {
        /// The id asked for.
        id: u32,
        /// Who asks.
        name: String,
        /// How many are registered.
        known: usize,
    },
    /// A node holds something else than an id.
    #[error("the id of '{name}' in ZooKeeper is unreadable: {bytes:02x?}")]
    Unreadable {
        /// The node's name.
        name: String,
        /// Its data.
        bytes: Vec<u8>,
    },
    /// ZooKeeper did not do it in time.
    #[error("ZooKeeper at {hosts} gave no id within {} s", RETRY_WITHIN.as_secs())]
    ZooKeeper {
        /// As configured.
        hosts: String,
        /// The last failure.
        #[source]
        source: ZkError,
    },
}

/// Finds this invoker's id. ZooKeeper is asked only when there is no `--id`.
///
/// # Errors
/// See [`IdError`]; the invoker does not start then.
pub async fn choose(choice: &IdChoice) -> Result<u32, IdError> {
    if let Some(id) = choice.id {
        return Ok(id);
    }
    let (Some(name), Some(hosts)) = (&choice.unique_name, &choice.zookeeper_hosts) else {
        return Err(IdError::Unsaid);
    };
    let hosts = hosts.trim();
    if hosts.is_empty() || hosts.starts_with(':') || hosts.ends_with(':') {
        return Err(IdError::Hosts { hosts: hosts.to_owned() });
    }
    if matches!(name.as_str(), "" | "." | "..") || name.contains('/') || name.chars().any(char::is_control) {
        return Err(IdError::Name { name: name.clone() });
    }
    assign(hosts, name, choice.overwrite).await
}

/// Why one attempt ended.
enum Attempt {
    /// Another attempt may do better.
    Again(ZkError),
    /// It will not.
    Never(IdError),
}

impl From<ZkError> for Attempt {
    fn from(error: ZkError) -> Self {
        Self::Again(error)
    }
}

async fn assign(hosts: &str, name: &str, overwrite: Option<u32>) -> Result<u32, IdError> {
    let deadline = Instant::now() + RETRY_WITHIN;
    let mut last = ZkError::Timeout;
    loop {
        // A connection that was lost is not used again: each attempt has its own.
        match timeout_at(deadline, attempt(hosts, name, overwrite)).await {
            Ok(Ok(id)) => {
                tracing::info!(id, name, "id assigned by ZooKeeper");
                return Ok(id);
            }
            Ok(Err(Attempt::Never(error))) => return Err(error),
            Ok(Err(Attempt::Again(error))) => last = error,
            Err(_) => {}
        }
        if Instant::now() + RETRY_INTERVAL >= deadline {
            return Err(IdError::ZooKeeper { hosts: hosts.to_owned(), source: last });
        }
        tracing::debug!(error = %last, "asking ZooKeeper again");
        sleep(RETRY_INTERVAL).await;
    }
}

async fn attempt(hosts: &str, name: &str, overwrite: Option<u32>) -> Result<u32, Attempt> {
    let client = connector().connect(hosts).await?;
    let registry = Registry { client, node: format!("{ROOT}/{name}"), name };
    match overwrite {
        Some(id) => registry.overwrite(id).await,
        None => registry.find_or_register().await,
    }
}

fn connector() -> Connector {
    Client::connector()
        .with_connection_timeout(CONNECT_WITHIN)
        .with_session_timeout(RETRY_WITHIN)
        .with_fail_eagerly()
}

/// Whether ZooKeeper answers at all (for `rewind check`).
///
/// # Errors
/// What the client says.
pub async fn ping(hosts: &str) -> Result<(), ZkError> {
    let client = connector().connect(hosts).await?;
    client.check_stat("/").await.map(drop)
}

struct Registry<'a> {
    client: Client,
    node: String,
    name: &'a str,
}

/// Nodes like Curator's: open to everybody; parents are containers, which the server may clean up.
const CONTAINER: CreateOptions<'_> = CreateMode::Container.with_acls(Acls::anyone_all());
const PERSISTENT: CreateOptions<'_> = CreateMode::Persistent.with_acls(Acls::anyone_all());

impl Registry<'_> {
    async fn find_or_register(&self) -> Result<u32, Attempt> {
        loop {
            match self.client.get_data(&self.node).await {
                Ok((bytes, _)) => return self.decode_own(bytes),
                Err(ZkError::NoNode) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(id) = self.register().await? {
                return Ok(id);
            }
        }
    }

    fn decode_own(&self, bytes: Vec<u8>) -> Result<u32, Attempt> {
        decode(&bytes)
            .ok_or_else(|| Attempt::Never(IdError::Unreadable { name: self.name.to_owned(), bytes }))
    }

    /// Tries once to take the next id; `None` if somebody was faster.
    async fn register(&self) -> Result<Option<u32>, Attempt> {
        self.make_parents().await?;
        let (_, counter) = self.client.get_data(COUNTER).await?;
        let (others, _) = self.client.get_children(ROOT).await?;
        let count = u32::try_from(others.len()).unwrap_or(u32::MAX);
        let id = self.free_id(count, &others).await?;
        let mut writer = self.client.new_multi_writer();
        writer.add_set_data(COUNTER, &(count.saturating_add(1)).to_be_bytes(), Some(counter.version))?;
        writer.add_create(&self.node, &encode(id), &PERSISTENT)?;
        match writer.commit().await {
            Ok(_) => Ok(Some(id)),
            Err(MultiWriteError::OperationFailed {
                source: ZkError::BadVersion | ZkError::NodeExists | ZkError::NoNode,
                ..
            }) => Ok(None),
            Err(MultiWriteError::OperationFailed { source, .. }) => Err(source.into()),
            Err(MultiWriteError::RequestFailed { source }) => Err(source.into()),
        }
    }

    /// The number of known invokers, as upstream has it. Only if an entry was deleted by hand can that id be
    /// taken; two invokers on one topic would then steal each other's messages, so the lowest free id is used.
    async fn free_id(&self, count: u32, others: &[String]) -> Result<u32, Attempt> {
        let mut taken = Vec::with_capacity(others.len());
        for (_, id) in self.ids(others).await? {
            taken.push(id);
        }
        if !taken.contains(&count) {
            return Ok(count);
        }
        let free = (0..=count).find(|id| !taken.contains(id)).unwrap_or(count.saturating_add(1));
        tracing::warn!(taken = count, free, "the next id is taken, using the lowest that is free");
        Ok(free)
    }

    /// Ids by name. An entry that vanishes meanwhile is left out, an unreadable one stops us.
    async fn ids(&self, names: &[String]) -> Result<Vec<(String, u32)>, Attempt> {
        let mut ids = Vec::with_capacity(names.len());
        for name in names {
            match self.client.get_data(&format!("{ROOT}/{name}")).await {
                Ok((bytes, _)) => match decode(&bytes) {
                    Some(id) => ids.push((name.clone(), id)),
                    None => return Err(Attempt::Never(IdError::Unreadable { name: name.clone(), bytes })),
                },
                Err(ZkError::NoNode) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(ids)
    }

    async fn overwrite(&self, id: u32) -> Result<u32, Attempt> {
        self.make_parents().await?;
        let (names, _) = self.client.get_children(ROOT).await?;
        if names.len() < usize::try_from(id).unwrap_or(usize::MAX) {
            let name = self.name.to_owned();
            return Err(Attempt::Never(IdError::NotEnough { id, name, known: names.len() }));
        }
        for (name, other) in self.ids(&names).await? {
            if other == id && name != self.name {
                match self.client.delete(&format!("{ROOT}/{name}"), None).await {
                    Ok(()) => tracing::warn!(name, id, "entry of another invoker removed"),
                    Err(ZkError::NoNode) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        // The root is a container and may have gone with its last child.
        self.make_parents().await?;
        match self.client.create(&self.node, &encode(id), &PERSISTENT).await {
            Ok(_) => {}
            Err(ZkError::NodeExists) => {
                self.client.set_data(&self.node, &encode(id), None).await?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(id)
    }

    async fn make_parents(&self) -> Result<(), Attempt> {
        self.client.mkdir(ROOT, &CONTAINER).await?;
        match self.client.create(COUNTER, &0_i32.to_be_bytes(), &PERSISTENT).await {
            Ok(_) | Err(ZkError::NodeExists) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Big-endian two's complement in as few bytes as it takes: 0 is `00`, 127 `7f`, 128 `00 80`.
fn encode(id: u32) -> Vec<u8> {
    let bytes = i64::from(id).to_be_bytes();
    let mut skip = 0;
    // A zero byte may go while the next one still reads as positive.
    while skip + 1 < bytes.len() && bytes[skip] == 0 && bytes[skip + 1] < 0x80 {
        skip += 1;
    }
    bytes[skip..].to_vec()
}

/// The other way; longer forms of the same number are read too.
fn decode(bytes: &[u8]) -> Option<u32> {
    let (first, _) = bytes.split_first()?;
    if *first >= 0x80 {
        return None;
    }
    bytes.iter().try_fold(0_u32, |id, byte| id.checked_mul(256)?.checked_add(u32::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_are_written_as_java_writes_integers() {
        for (id, bytes) in [
            (0, &[0x00][..]),
            (1, &[0x01]),
            (127, &[0x7f]),
            (128, &[0x00, 0x80]),
            (255, &[0x00, 0xff]),
            (256, &[0x01, 0x00]),
            (32768, &[0x00, 0x80, 0x00]),
        ] {
            assert_eq!(encode(id), bytes);
            assert_eq!(decode(bytes), Some(id));
        }
        for bytes in [&[][..], &[0xff], &[0x80, 0x00], &[0x01, 0, 0, 0, 0]] {
            assert_eq!(decode(bytes), None, "{bytes:02x?}");
        }
    }

    proptest! {
        #[test]
        fn every_id_comes_back(id in any::<u32>()) {
            prop_assert_eq!(decode(&encode(id)), Some(id));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let _ = decode(&bytes);
        }
    }

    #[tokio::test]
    async fn the_command_line_goes_before_zookeeper() {
        let fixed = IdChoice { id: Some(3), unique_name: Some("a".to_owned()), ..IdChoice::default() };
        assert_eq!(choose(&fixed).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn what_is_missing_is_said() {
        let choice = |name: Option<&str>, hosts: Option<&str>| IdChoice {
            unique_name: name.map(str::to_owned),
            zookeeper_hosts: hosts.map(str::to_owned),
            ..IdChoice::default()
        };
        for (choice, says) in [
            (choice(None, None), "no id: give --id, or --uniqueName and ZOOKEEPER_HOSTS"),
            (choice(Some("a"), None), "no id: give --id, or --uniqueName and ZOOKEEPER_HOSTS"),
            (choice(Some("a"), Some(" ")), "no id: ZOOKEEPER_HOSTS is '', expected host:port[,host:port]"),
            (
                choice(Some("a"), Some(":2181")),
                "no id: ZOOKEEPER_HOSTS is ':2181', expected host:port[,host:port]",
            ),
            (
                choice(Some("a"), Some("zk:")),
                "no id: ZOOKEEPER_HOSTS is 'zk:', expected host:port[,host:port]",
            ),
            (
                choice(Some("a/b"), Some("zk:1")),
                "unique name 'a/b' cannot be registered: it must not hold '/' or control characters",
            ),
        ] {
            assert_eq!(choose(&choice).await.unwrap_err().to_string(), says);
        }
    }
}
