//! Looking at processes through `/proc`.

use std::fs;
use std::io;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::identity::{Identity, Stat, parse_stat};

/// Rounds of killing what is left of a session. Each round kills every member it sees; a process
/// that forks while it is looked at is met in the next.
const SWEEP_ROUNDS: usize = 16;

/// The id of this boot; pids and start times mean nothing across boots.
pub(crate) fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

/// What `/proc` says of a process now. `None` when there is none with this pid.
pub(crate) fn stat(pid: Pid) -> Option<Stat> {
    read_stat(&pid.as_raw_nonzero().to_string())
}

/// Whether this very process (not a later one with its pid) still runs.
pub(crate) fn runs(identity: Identity) -> bool {
    stat(identity.pid).is_some_and(|now| now.identity == identity && !now.ended)
}

/// Kills whatever is left of the session that `leader` led, except the leader itself. Blocks for
/// as long as reading `/proc` takes.
pub(crate) fn kill_session(leader: Identity) {
    for _ in 0..SWEEP_ROUNDS {
        let members = session_members(leader);
        if members.is_empty() {
            return;
        }
        for member in members {
            kill(member, leader);
        }
    }
    tracing::warn!(
        session = leader.pid.as_raw_nonzero().get(),
        "processes of an ended sandbox keep forking; some may be left"
    );
}

/// Members of the leader's session that still run. A pid is not used again while it names a
/// session with members, so if the leader's pid belongs to another process the session is empty.
fn session_members(leader: Identity) -> Vec<Identity> {
    if stat(leader.pid).is_some_and(|now| now.identity != leader) {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| read_stat(entry.ok()?.file_name().to_str()?))
        .filter(|stat| stat.session == leader.pid.as_raw_nonzero().get())
        .filter(|stat| stat.identity.pid != leader.pid && !stat.ended)
        .map(|stat| stat.identity)
        .collect()
}

fn kill(member: Identity, leader: Identity) {
    // The pidfd is taken first and the identity checked after, so the signal cannot reach a
    // process that got the pid in between.
    let Ok(pidfd) = pidfd_open(member.pid, PidfdFlags::empty()) else {
        return;
    };
    let still_member = stat(member.pid).is_some_and(|now| {
        now.identity == member && now.session == leader.pid.as_raw_nonzero().get()
    });
    if still_member {
        // Fails only if it has ended, which is what was wanted.
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

fn read_stat(pid: &str) -> Option<Stat> {
    if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    parse_stat(fs::read_to_string(format!("/proc/{pid}/stat")).ok()?.trim_end())
}
