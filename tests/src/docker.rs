//! What a test sees and does behind the invoker's back.

use serde_json::Value;
use std::process::{Command, Stdio};

/// A Docker Engine, through its command line.
#[derive(Clone, Debug)]
pub struct Docker {
    host: String,
}

impl Docker {
    /// The engine at `unix:///...`.
    pub fn at(host: &str) -> Self {
        Self { host: host.to_owned() }
    }

    /// Runs `docker ARGS...`; the trimmed standard output, or what it complained about.
    pub fn try_run(&self, args: &[&str]) -> Result<String, String> {
        let output = Command::new("docker").args(["-H", &self.host]).args(args).stdin(Stdio::null()).output();
        let output = output.map_err(|e| format!("docker: {e}"))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(format!("docker {args:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
    }

    /// Runs `docker ARGS...`.
    pub fn run(&self, args: &[&str]) -> String {
        self.try_run(args).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Ids and names of the containers whose name starts with `prefix`, stopped ones included.
    pub fn containers(&self, prefix: &str) -> Vec<(String, String)> {
        let filter = format!("name=^/?{prefix}");
        let list =
            self.run(&["ps", "-a", "--no-trunc", "--filter", &filter, "--format", "{{.ID}} {{.Names}}"]);
        list.lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(id, name)| (id.to_owned(), name.to_owned()))
            .collect()
    }

    /// What the engine says about a container.
    pub fn inspect(&self, id: &str) -> Value {
        let text = self.run(&["inspect", id]);
        serde_json::from_str::<Value>(&text).expect("docker prints JSON")[0].take()
    }

    /// Removes every container whose name starts with `prefix`.
    pub fn remove_all(&self, prefix: &str) {
        for (id, _) in self.containers(prefix) {
            // A paused container is not always removed by force alone.
            let _ = self.try_run(&["unpause", &id]);
            let _ = self.try_run(&["rm", "-f", &id]);
        }
    }
}
