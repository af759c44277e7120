//! Waiting until a container is quiet.
//!
//! Quiet means: every thread sleeps in a system call that may be started again, none of them ran for a
//! while, and no TCP connection is open. (`restart_syscall` is no such call: which one it goes on with is known
//! to the kernel alone.) Looked at from outside, without stopping anything.

use crate::proc;
use crate::registers::restartable;
use crate::tree::Target;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// How many busy things a message names.
const NAMED_MAX: usize = 8;

/// Waits until the container has been quiet for `quiet`, at most until `deadline`; else says what was busy.
pub(crate) fn wait(target: &Target, quiet: Duration, deadline: Instant) -> Result<(), Vec<String>> {
    let mut before = Vec::new();
    let mut since = Instant::now();
    loop {
        let (now, busy) = look(target);
        if now != before || !busy.is_empty() {
            before = now;
            since = Instant::now();
        } else if since.elapsed() >= quiet {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(if busy.is_empty() {
                vec!["threads that run now and then".to_owned()]
            } else {
                busy
            });
        }
        std::thread::sleep(LOOK);
    }
}

/// Which threads there are with the time they ran so far, and what is busy.
fn look(target: &Target) -> (Vec<(i32, String)>, Vec<String>) {
    let mut threads = Vec::new();
    let mut busy = Vec::new();
    let pids = match target.members().processes() {
        Ok(pids) if !pids.is_empty() => pids,
        Ok(_) => return (threads, vec!["no process is left".to_owned()]),
        Err(error) => return (threads, vec![format!("the control group: {error}")]),
    };
    for pid in &pids {
        for tid in proc::threads(pid.as_raw()).unwrap_or_default() {
            let read =
                |what| std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/{what}")).unwrap_or_default();
            threads.push((tid, read("schedstat")));
            let call = read("syscall");
            let number = call.split_whitespace().next().unwrap_or("gone");
            if number.parse().ok().and_then(restartable).is_none() {
                busy.push(format!("thread {tid} of process {pid} ({number})"));
            }
        }
    }
    // The table is long where others share it, and whoever runs may still close or open connections.
    if busy.is_empty() {
        busy.extend(connections(target, &pids));
    }
    busy.truncate(NAMED_MAX);
    (threads, busy)
}

/// TCP connections that a process of the container holds open.
fn connections(target: &Target, pids: &[nix::unistd::Pid]) -> Vec<String> {
    let mut open = Vec::new();
    for table in ["tcp", "tcp6"] {
        let path = format!("/proc/{}/net/{table}", target.init());
        if let Ok(text) = std::fs::read_to_string(path) {
            open.extend(open_sockets(&text));
        }
    }
    if open.is_empty() {
        return Vec::new();
    }
    // The table is that of the network namespace, which may be shared with others.
    let mut ours: HashSet<u64> = HashSet::new();
    for pid in pids {
        for fd in proc::numbers(&format!("/proc/{pid}/fd")).unwrap_or_default() {
            let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
            let inode = link.to_str().and_then(|l| l.strip_prefix("socket:[")?.strip_suffix(']'));
            ours.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
        }
    }
    open.retain(|(inode, _)| ours.contains(inode));
    open.into_iter().map(|(inode, peer)| format!("TCP connection {inode} with {peer}")).collect()
}

/// Inode and peer of connections in a `/proc/net/tcp` table that are neither listening, closed, nor waiting
/// out their time without an owner.
fn open_sockets(table: &str) -> Vec<(u64, String)> {
    const TIME_WAIT: &str = "06";
    const CLOSED: &str = "07";
    const LISTENING: &str = "0A";
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            // sl local remote state queues timer retransmits uid timeout inode
            let mut fields = line.split_whitespace();
            let peer = fields.nth(2)?;
            let state = fields.next()?;
            let inode = fields.nth(5)?.parse().ok()?;
            let done = matches!(state, TIME_WAIT | CLOSED | LISTENING) || inode == 0;
            (!done).then(|| (inode, peer.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_with_an_owner_count_as_open() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
           0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 148132 1 0 100 0 0 10 0\n\
           1: 020011AC:1F90 010011AC:D7B2 06 00000000:00000000 03:000016FB 00000000     0        0 0 3 0\n\
           2: 020011AC:1F90 010011AC:D7B3 01 00000000:00000000 00:00000000 00000000     0        0 4242 1 0\n\
           3: 020011AC:1F90 010011AC:D7B4 08 00000000:00000000 00:00000000 00000000     0        0 4243 1 0\n";
        let inodes: Vec<u64> = open_sockets(table).into_iter().map(|(inode, _)| inode).collect();
        assert_eq!(inodes, [4242, 4243]);
    }
}
