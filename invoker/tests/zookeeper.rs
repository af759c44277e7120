//! Ids from a real ZooKeeper (contract 1.2). Skipped, loudly, where it is not installed.

#![allow(missing_docs, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use rewind_invoker::id::{IdChoice, IdError, choose};
use zookeeper_client::{Acls, Client, CreateMode};

/// A ZooKeeper of this test's own, stopped when dropped.
struct ZooKeeper {
    service: PathBuf,
    run: tempfile::TempDir,
    hosts: String,
}

impl ZooKeeper {
    fn start(test: &str) -> Option<Self> {
        if !Path::new("/usr/share/java/zookeeper.jar").exists() {
            eprintln!("SKIP {test}: ZooKeeper is not installed (apt-get install zookeeper)");
            return None;
        }
        let service = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/env/service");
        let run = tempfile::tempdir().unwrap();
        let output = Command::new(&service).args(["start", "zookeeper"]).arg(run.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let hosts = said.lines().find_map(|line| line.strip_prefix("ZOOKEEPER_HOSTS=")).unwrap().to_owned();
        Some(Self { service, run, hosts })
    }

    fn ask(&self, name: &str, overwrite: Option<u32>) -> IdChoice {
        IdChoice {
            id: None,
            unique_name: Some(name.to_owned()),
            overwrite,
            zookeeper_hosts: Some(self.hosts.clone()),
        }
    }

    async fn id(&self, name: &str) -> u32 {
        choose(&self.ask(name, None)).await.unwrap()
    }

    async fn data(&self, path: &str) -> Option<Vec<u8>> {
        let client = Client::connect(&self.hosts).await.unwrap();
        client.get_data(&format!("/invokers/idAssignment/{path}")).await.ok().map(|(bytes, _)| bytes)
    }
}

impl Drop for ZooKeeper {
    fn drop(&mut self) {
        let _ = Command::new(&self.service).args(["stop", "zookeeper"]).arg(self.run.path()).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_given_in_order_kept_and_overwritten() {
    let Some(zookeeper) = ZooKeeper::start("ids_are_given_in_order_kept_and_overwritten") else { return };

    assert_eq!(zookeeper.id("a").await, 0);
    assert_eq!(zookeeper.id("b").await, 1);
    assert_eq!(zookeeper.id("a").await, 0, "a name keeps its id");
    assert_eq!(zookeeper.data("mapping/b").await, Some(vec![1]));
    assert_eq!(zookeeper.data("counter").await, Some(vec![0, 0, 0, 2]));

    let error = choose(&zookeeper.ask("c", Some(3))).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot assign 3 to 'c': not enough invokers, 2 are registered");
    assert_eq!(choose(&zookeeper.ask("c", Some(0))).await.unwrap(), 0, "taken from a");
    assert_eq!(zookeeper.data("mapping/a").await, None);
    assert_eq!(choose(&zookeeper.ask("c", Some(2))).await.unwrap(), 2, "set anew");
    // Two are registered (b: 1, c: 2), so upstream would give 2 once more.
    assert_eq!(zookeeper.id("d").await, 0, "the lowest free id instead of one that is taken");

    // An entry as a JVM invoker writes it.
    let client = Client::connect(&zookeeper.hosts).await.unwrap();
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.create("/invokers/idAssignment/mapping/jvm", &[0x00, 0x80], &options).await.unwrap();
    assert_eq!(zookeeper.id("jvm").await, 128);
    client.create("/invokers/idAssignment/mapping/odd", b"\xff", &options).await.unwrap();
    let error = choose(&zookeeper.ask("odd", None)).await.unwrap_err();
    assert_eq!(error.to_string(), "the id of 'odd' in ZooKeeper is unreadable: [ff]");
    client.delete("/invokers/idAssignment/mapping/odd", None).await.unwrap();

    let names: Vec<String> = (0..12).map(|n| format!("node{n}")).collect();
    let all = names.iter().map(|name| zookeeper.id(name));
    let mut ids = futures::future::join_all(all).await;
    ids.sort_unstable();
    assert_eq!(ids, (4..16).collect::<Vec<_>>(), "who starts together gets different ids");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zookeeper_that_is_away_is_said_after_the_retries() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hosts = taken.local_addr().unwrap().to_string();
    drop(taken);
    let choice = IdChoice {
        unique_name: Some("a".to_owned()),
        zookeeper_hosts: Some(hosts.clone()),
        ..IdChoice::default()
    };
    match choose(&choice).await.unwrap_err() {
        IdError::ZooKeeper { hosts: named, .. } => assert_eq!(named, hosts),
        other => panic!("{other}"),
    }
}
