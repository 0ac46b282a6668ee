//! An event, or what it takes to put one together later.

use std::fmt;

use super::event::Event;
use super::{
    ApiActivity, ApplicationLifecycle, Authentication, ConfigStateChange, DetectionFinding,
    HttpActivity, NetworkActivity, ProcessActivity, SshActivity,
};

/// What [`Recorder::record`](super::Recorder::record) takes: an event of any class, or a closure that makes one.
///
/// An event has many small texts. Where requests are served, keep what is needed in as few pieces as possible and
/// let the writer's thread make the event of them. A closure must keep its captures small and must not wait: it runs in
/// front of all later events.
pub struct Draft {
    time: i64,
    form: Form,
}

enum Form {
    Event(Event),
    Later(Box<dyn FnOnce() -> Event + Send>),
}

impl Draft {
    /// An event that happened at `time` (milliseconds since 1970) and is put together when it is written. A closure that
    /// panics loses its event, which is counted and told like one that a sink did not take.
    pub fn later(time: i64, make: impl FnOnce() -> Event + Send + 'static) -> Self {
        Self { time, form: Form::Later(Box::new(make)) }
    }

    pub(crate) fn time(&self) -> i64 {
        self.time
    }

    pub(crate) fn into_event(self) -> Event {
        match self.form {
            Form::Event(event) => event,
            Form::Later(make) => make(),
        }
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft").field("time", &self.time).finish_non_exhaustive()
    }
}

impl From<Event> for Draft {
    fn from(event: Event) -> Self {
        Self { time: event.time(), form: Form::Event(event) }
    }
}

macro_rules! from_classes {
    ($($class:ty,)+) => {
        $(impl From<$class> for Draft {
            fn from(event: $class) -> Self {
                Event::from(event).into()
            }
        })+
    };
}

from_classes! {
    NetworkActivity,
    SshActivity,
    HttpActivity,
    Authentication,
    ApiActivity,
    ApplicationLifecycle,
    ProcessActivity,
    DetectionFinding,
    ConfigStateChange,
}
