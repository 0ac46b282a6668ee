//! One task per sandbox, which owns it.
//!
//! The keeper alone starts, ends and removes its sandbox; calls reach it by mail and are done one
//! after the other, also when the caller has gone away meanwhile. When the driver is dropped the
//! mail ends and so does the keeper, leaving the supervisor as it is for the next driver.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_driver_core::compute::{DriverCondition, DriverSandboxStatus};
use postern_driver_core::condition::{self, EventKind, reason};
use postern_driver_core::{DriverError, SandboxToken};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::driver::{Common, DRIVER_NAME};
use crate::error::{Context as _, Failure};
use crate::identity::parse_pid_file;
use crate::launch::launch;
use crate::layout::{SandboxDir, fnv, read_private, remove_if_there, remove_tree, write_private};
use crate::record::{Ended, Record, save_token};
use crate::restart::{QUICK_FAILURES, Restarts, Verdict};
use crate::supervisor::{Exit, Supervisor};
use crate::{log, procfs};

mod make;

pub(crate) use make::make;

/// Calls that may wait for a keeper. More wait with their caller.
pub(crate) const MAILBOX: usize = 8;

/// How often the size of a running supervisor's log is looked at. At a megabyte per second, far
/// above what supervisors write, a log exceeds its limit by 30 MiB.
const LOG_CHECK: Duration = Duration::from_secs(30);

/// Longest grace on deletion: what the supervisor would save is about to be removed.
const DELETE_GRACE: Duration = Duration::from_secs(1);

/// Where the answer to a call goes.
pub(crate) type Reply = oneshot::Sender<Result<(), DriverError>>;

/// A call.
pub(crate) enum Call {
    Stop(Reply),
    Start(Option<SandboxToken>, Reply),
    Delete(Reply),
}

/// What a sandbox does now.
enum State {
    Running {
        supervisor: Supervisor,
        since: Instant,
    },
    /// The supervisor ended by itself and is started again at this time.
    Waiting {
        at: Instant,
    },
    Stopped,
    /// Not started again unless asked.
    Ended,
}

/// What happened by itself.
enum Event {
    Exited { exit: Exit, uptime: Duration },
    Due,
}

pub(crate) struct Keeper {
    common: Arc<Common>,
    dir: SandboxDir,
    record: Record,
    state: State,
    restarts: Restarts,
    rng: StdRng,
    /// A stop that an earlier driver began and did not finish.
    finish_stop: bool,
}

// === impl Keeper ===

impl Keeper {
    fn new(common: Arc<Common>, dir: SandboxDir, record: Record, state: State) -> Self {
        let seed = common.seed ^ fnv(record.sandbox.id.as_bytes());
        Self {
            common,
            dir,
            record,
            state,
            restarts: Restarts::default(),
            rng: StdRng::seed_from_u64(seed),
            finish_stop: false,
        }
    }

    /// Finds a sandbox of an earlier driver in the state it is in, and the status that is to be
    /// shown of it. Reads a few small files.
    pub(crate) fn find(
        common: Arc<Common>,
        dir: SandboxDir,
        record: Record,
    ) -> std::io::Result<(Self, DriverSandboxStatus)> {
        let pid_file = read_private(&dir.pid())?.unwrap_or_default();
        let alive = parse_pid_file(&String::from_utf8_lossy(&pid_file), &common.boot_id)
            .filter(|identity| procfs::runs(*identity));
        let stopped = dir.stopped().symlink_metadata().is_ok();
        let ended = match Ended::load(&dir)? {
            None if dir.main_process_exited().symlink_metadata().is_ok() => {
                Some(main_process_ended(&dir))
            }
            other => other,
        };
        let now = Timestamp::now();
        let mut instance = String::new();
        let (state, conditions) = match (alive, ended) {
            (Some(identity), _) => {
                instance = identity.text();
                let running = State::Running {
                    supervisor: Supervisor::new(identity, None),
                    since: Instant::now(),
                };
                (running, running_conditions(now))
            }
            (None, _) if stopped => (State::Stopped, stopped_conditions(now)),
            (None, Some(ended)) => (State::Ended, ended_conditions(&ended, now)),
            (None, None) => {
                let text = "the supervisor ended while no gateway watched; starting it again";
                let waiting = State::Waiting { at: Instant::now() };
                (waiting, vec![condition::not_ready(reason::STARTING, text, now)])
            }
        };
        let status = DriverSandboxStatus {
            sandbox_name: record.sandbox.name.clone(),
            instance_id: instance,
            conditions,
            ..Default::default()
        };
        let mut keeper = Self::new(common, dir, record, state);
        keeper.finish_stop = stopped && alive.is_some();
        Ok((keeper, status))
    }

    /// Keeps the sandbox until it is deleted (then true) or the driver is dropped.
    pub(crate) async fn run(mut self, mut calls: mpsc::Receiver<Call>) {
        if self.finish_stop
            && let Err(error) = self.stop().await
        {
            tracing::warn!(sandbox_id = %self.id(), %error, "could not finish an earlier stop");
        }
        let mut log_check = interval(LOG_CHECK);
        log_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                call = calls.recv() => match call {
                    None => return,
                    Some(Call::Stop(reply)) => {
                        let answer = self.stop().await;
                        answer_to(reply, answer);
                    }
                    Some(Call::Start(token, reply)) => {
                        let answer = self.start(token).await;
                        answer_to(reply, answer);
                    }
                    Some(Call::Delete(reply)) => match self.delete().await {
                        Err(error) => answer_to(reply, Err(error)),
                        Ok(remains) => {
                            // Later calls find no sandbox before this one is answered.
                            self.common.forget(self.id());
                            self.tell(EventKind::Normal, "Deleted", "sandbox was removed".into());
                            answer_to(reply, Ok(()));
                            self.remove(remains).await;
                            return;
                        }
                    },
                },
                event = self.state.changed() => self.react(event).await,
                _ = log_check.tick() => self.bound_log().await,
            }
        }
    }

    fn id(&self) -> &str {
        &self.record.sandbox.id
    }

    /// Ends the sandbox's processes and remembers that this was wanted.
    async fn stop(&mut self) -> Result<(), DriverError> {
        if matches!(self.state, State::Stopped) {
            return Ok(());
        }
        // First the mark, then the deed: a gateway that dies in between finishes it later.
        let mark = self.dir.stopped();
        self.blocking("mark it as stopped", move || write_private(&mark, b"")).await?;
        self.end(self.common.config.stop_grace).await?;
        let ended = self.dir.ended();
        self.blocking("forget why it ended", move || remove_if_there(&ended)).await?;
        self.state = State::Stopped;
        self.restarts = Restarts::default();
        self.show(stopped_conditions(Timestamp::now()), None);
        self.tell(EventKind::Normal, "Stopped", "sandbox was stopped".into());
        Ok(())
    }

    /// Runs the sandbox again, on the files it had.
    async fn start(&mut self, token: Option<SandboxToken>) -> Result<(), DriverError> {
        if matches!(self.state, State::Running { .. }) {
            return Ok(());
        }
        if let Some(token) = token.filter(|token| !token.is_empty()) {
            let dir = self.dir.clone();
            self.blocking("write its token", move || save_token(&dir, &token)).await?;
        }
        self.restarts = Restarts::default();
        let (stopped, ended) = (self.dir.stopped(), self.dir.ended());
        let was_stopped = matches!(self.state, State::Stopped);
        self.blocking("forget that it was stopped", move || {
            remove_if_there(&stopped)?;
            remove_if_there(&ended)
        })
        .await?;
        let Err(failure) = self.launch().await else {
            return Ok(());
        };
        let error = failure.of(self.id());
        if was_stopped {
            let mark = self.dir.stopped();
            self.blocking("mark it as stopped", move || write_private(&mark, b"")).await?;
        } else {
            self.give_up(reason::START_FAILED, error.to_string()).await;
        }
        Err(error)
    }

    /// Ends the sandbox and takes it out of sight; says where its remains are.
    async fn delete(&mut self) -> Result<std::path::PathBuf, DriverError> {
        self.common.inventory.update(self.id(), |status| status.deleting = true);
        let mark = self.dir.stopped();
        // So that nobody starts it again if the gateway dies now.
        self.blocking("mark it as stopped", move || write_private(&mark, b"")).await?;
        self.end(DELETE_GRACE.min(self.common.config.stop_grace)).await?;
        self.state = State::Stopped;
        let (common, dir) = (Arc::clone(&self.common), self.dir.clone());
        self.blocking("take its directory away", move || {
            dir.remove_socket_dir();
            common.state_dir.withdraw(&dir)
        })
        .await
    }

    async fn remove(self, remains: std::path::PathBuf) {
        let path = remains.clone();
        let removed = spawn_blocking(move || remove_tree(&path)).await;
        // Only now, so that no file of the old sandbox can belong to a new one's agent.
        self.common.uids.give_back(self.record.agent.uid);
        match removed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(sandbox_id = %self.id(), path = %remains.display(), %error,
                    "could not remove the files of a deleted sandbox; the next start tries again");
            }
            Err(error) => tracing::warn!(sandbox_id = %self.id(), %error, "removal was cut short"),
        }
    }

    /// Ends the supervisor if there is one.
    async fn end(&mut self, grace: Duration) -> Result<(), DriverError> {
        if let State::Running { supervisor, .. } = &mut self.state
            && let Err(error) = supervisor.end(grace).await
        {
            return Err(DriverError::Unavailable {
                id: self.id().to_owned(),
                problem: error.to_string(),
                next: "look at what the process waits for on the host, then try again",
                source: None,
            });
        }
        Ok(())
    }

    async fn react(&mut self, event: Event) {
        match event {
            Event::Exited { exit, uptime } => self.exited(exit, uptime).await,
            Event::Due => {
                if let Err(failure) = self.launch().await {
                    let error = failure.of(self.id());
                    tracing::warn!(sandbox_id = %self.id(), %error, "supervisor did not start");
                    self.failed(&error.to_string(), Duration::ZERO).await;
                }
            }
        }
    }

    /// The supervisor ended without having been asked to.
    async fn exited(&mut self, exit: Exit, uptime: Duration) {
        self.state = State::Ended;
        let dir = self.dir.clone();
        let facts = spawn_blocking(move || {
            let reported = dir.main_process_exited().symlink_metadata().is_ok();
            (reported.then(|| main_process_ended(&dir)), quoted_log(&dir))
        });
        let (reported, last_line) = facts.await.unwrap_or_default();
        let text = match last_line {
            Some(line) => format!("supervisor {exit}; it last said: {line}"),
            None => format!("supervisor {exit}"),
        };
        tracing::info!(sandbox_id = %self.id(), ?uptime, "{text}");
        if let Some(ended) = reported {
            self.give_up(&ended.reason, ended.message).await;
        } else if exit.status.is_some_and(|status| status.success()) {
            // A supervisor has no other reason to end well than that its main process did.
            self.give_up(reason::PROCESS_EXITED, text).await;
        } else {
            self.failed(&text, uptime).await;
        }
    }

    /// Decides whether the supervisor gets another chance.
    async fn failed(&mut self, text: &str, uptime: Duration) {
        match self.restarts.ended(uptime, &mut self.rng) {
            Verdict::After(wait) => {
                let text = format!("{text}; starting again in {} ms", wait.as_millis());
                self.state = State::Waiting { at: Instant::now() + wait };
                let waiting = condition::not_ready(reason::STARTING, &*text, Timestamp::now());
                self.show(vec![waiting], Some(String::new()));
                self.tell(EventKind::Warning, "BackOff", text);
            }
            Verdict::GiveUp => {
                let text = format!("{text}; gave up after {QUICK_FAILURES} quick failures");
                self.give_up(reason::CRASH_LOOP, text).await;
            }
        }
    }

    /// Does not start the sandbox again by itself, not even after a restart of the gateway.
    async fn give_up(&mut self, reason: &str, message: String) {
        self.state = State::Ended;
        let ended = Ended { reason: reason.to_owned(), message };
        let (dir, saved) = (self.dir.clone(), ended.clone());
        if let Err(error) = self.blocking("write down why it ended", move || saved.save(&dir)).await
        {
            tracing::warn!(sandbox_id = %self.id(), %error, "a restart will try it again");
        }
        self.show(ended_conditions(&ended, Timestamp::now()), None);
        self.tell(EventKind::Warning, reason, ended.message);
    }

    async fn launch(&mut self) -> Result<(), Failure> {
        let supervisor = launch(&self.common, &self.dir, &self.record).await?;
        let identity = supervisor.identity();
        self.state = State::Running { supervisor, since: Instant::now() };
        self.show(running_conditions(Timestamp::now()), Some(identity.text()));
        let text = format!("supervisor runs as process {}", identity.pid.as_raw_nonzero());
        self.tell(EventKind::Normal, "Started", text);
        Ok(())
    }

    async fn bound_log(&self) {
        let (dir, limit) = (self.dir.clone(), self.common.config.log_limit_bytes);
        if let Err(error) = self.blocking("rotate its log", move || log::rotate(&dir, limit)).await
        {
            tracing::warn!(sandbox_id = %self.id(), %error, "log is not bounded");
        }
    }

    /// Shows conditions, and the instance if it is given.
    fn show(&self, conditions: Vec<DriverCondition>, instance: Option<String>) {
        self.common.inventory.update(self.id(), |status| {
            status.conditions = conditions;
            if let Some(instance) = instance {
                status.instance_id = instance;
            }
        });
    }

    fn tell(&self, kind: EventKind, reason: &str, message: String) {
        let event = condition::platform_event(DRIVER_NAME, kind, reason, message, Timestamp::now());
        self.common.inventory.tell(self.id(), event);
    }

    /// Does file work away from the tasks that must not wait.
    async fn blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, DriverError> {
        spawn_blocking(work)
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .context(action)
            .map_err(|failure| failure.of(self.id()))
    }
}

// === impl State ===

impl State {
    /// Waits for what happens by itself. Cancel safe.
    async fn changed(&mut self) -> Event {
        match self {
            Self::Running { supervisor, since } => {
                let exit = supervisor.exited().await;
                Event::Exited { exit, uptime: since.elapsed() }
            }
            Self::Waiting { at } => {
                sleep_until(*at).await;
                Event::Due
            }
            Self::Stopped | Self::Ended => std::future::pending().await,
        }
    }
}

fn running_conditions(now: Timestamp) -> Vec<DriverCondition> {
    vec![condition::ready(reason::PROCESS_RUNNING, "the supervisor process runs", now)]
}

fn stopped_conditions(now: Timestamp) -> Vec<DriverCondition> {
    let text = "stopped; its files are kept";
    vec![
        condition::suspended(true, reason::STOPPED, text, now),
        condition::not_ready(reason::STOPPED, text, now),
    ]
}

fn ended_conditions(ended: &Ended, now: Timestamp) -> Vec<DriverCondition> {
    vec![condition::not_ready(&ended.reason, &*ended.message, now)]
}

/// What the mark of a supervisor says whose main process ended and was reported.
fn main_process_ended(dir: &SandboxDir) -> Ended {
    let code = read_private(&dir.main_process_exited())
        .ok()
        .flatten()
        .and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse::<i32>().ok());
    let message = match code {
        Some(code) => format!("main process exited with code {code}"),
        None => "main process exited".to_owned(),
    };
    Ended { reason: reason::PROCESS_EXITED.to_owned(), message }
}

/// The last line of the supervisor's log, without the sandbox's token in it.
fn quoted_log(dir: &SandboxDir) -> Option<String> {
    let line = log::last_line(dir)?;
    let token = read_private(&dir.token()).ok().flatten().unwrap_or_default();
    let token = String::from_utf8_lossy(&token).trim().to_owned();
    Some(if token.is_empty() { line } else { line.replace(&token, "***") })
}

/// A caller that went away needs no answer.
fn answer_to(reply: Reply, answer: Result<(), DriverError>) {
    let _ = reply.send(answer);
}
