//! The short form: one line per event, for people and agents who read along.
//!
//! `CLASS:ACTIVITY [SEV] ACTION details [context]`, the shape of the OpenShell contract, so that scripts and eyes trained on
//! OpenShell's sandbox log read Postern's. Everything that came from outside is escaped and bounded on the way in: white space
//! in a word, brackets, line breaks, controls.

use super::common::Common;
use super::object::{Connection, Endpoint, Peers, Process};
use super::text::{Place, Text, push_escaped};
use super::vocabulary::{Confidence, Value, Verdict};

/// Characters shown of a reason (OpenShell contract).
const REASON: usize = 256;

/// Characters shown of a message in brackets (OpenShell contract).
const MESSAGE: usize = 120;

/// Characters shown of one word: a whole DNS name or file name.
const WORD: usize = 255;

/// Characters shown of a URL or command line: several terminal lines are no longer a short form.
const LONG: usize = 400;

/// Unmapped values shown, and characters of each: enough for what the product itself adds.
const UNMAPPED: usize = 8;
const UNMAPPED_VALUE: usize = 64;

/// The values a change of configuration is known by, in the order they are shown.
const CONFIG_FIELDS: [&str; 6] =
    ["auto", "source", "prover_delta", "resolved_from", "version", "hash"];

/// A short line being written.
pub(crate) struct Line<'a> {
    out: &'a mut String,
    common: &'a Common,
}

impl<'a> Line<'a> {
    pub(crate) fn new(out: &'a mut String, common: &'a Common) -> Self {
        Self { out, common }
    }

    /// `CLASS:ACTIVITY [SEV]`
    pub(crate) fn head(&mut self, class: &str, activity: &str) {
        self.out.push_str(class);
        self.out.push(':');
        let upper = activity.to_uppercase().replace(|c: char| c.is_whitespace() || c == '-', "_");
        push_escaped(self.out, &upper, WORD, Place::Word);
        self.out.push_str(" [");
        self.out.push_str(self.common.severity.tag());
        self.out.push(']');
    }

    /// `ALLOWED`, `DENIED`, ... if a control had a say.
    pub(crate) fn verdict(&mut self) {
        if let Some(verdict) = self.common.verdict {
            self.fixed(verdict.word());
        }
    }

    /// `SUCCESS` or `FAILURE` if known.
    pub(crate) fn status(&mut self) {
        if let Some((_, label)) = self.common.status {
            self.fixed(&label.to_uppercase());
        }
    }

    /// A word of ours, which needs no escaping.
    pub(crate) fn fixed(&mut self, word: &str) {
        self.out.push(' ');
        self.out.push_str(word);
    }

    /// A word from outside.
    pub(crate) fn word(&mut self, word: &str) {
        self.out.push(' ');
        push_escaped(self.out, word, WORD, Place::Word);
    }

    /// Text from outside, spaces kept.
    pub(crate) fn text(&mut self, text: &str) {
        self.out.push(' ');
        push_escaped(self.out, text, WORD, Place::Free);
    }

    pub(crate) fn url(&mut self, url: &str) {
        self.out.push(' ');
        push_escaped(self.out, url, LONG, Place::Word);
    }

    /// Two words from outside with a mark of ours between them.
    pub(crate) fn joined(&mut self, first: &str, mark: char, second: &str) {
        self.word(first);
        self.out.push(mark);
        push_escaped(self.out, second, WORD, Place::Word);
    }

    pub(crate) fn quoted(&mut self, text: &str) {
        let mut escaped = String::with_capacity(text.len());
        push_escaped(&mut escaped, text, WORD, Place::Free);
        self.out.push_str(" \"");
        self.out.push_str(&escaped.replace('"', "\\\""));
        self.out.push('"');
    }

    /// `host:port`
    pub(crate) fn endpoint(&mut self, endpoint: &Endpoint) {
        self.word(&endpoint.shown_host());
        if let Some(port) = endpoint.shown_port() {
            self.out.push_str(&format!(":{port}"));
        }
    }

    /// `name(pid)`
    pub(crate) fn process(&mut self, process: &Process) {
        let (name, pid) = process.shown();
        self.word(name.unwrap_or("process"));
        self.out.push_str(&format!("({pid})"));
    }

    /// The process, user or program that did it, if known. True if there was one.
    pub(crate) fn actor(&mut self) -> bool {
        let Some(actor) = &self.common.actor else { return false };
        if let Some(process) = actor.shown_process() {
            self.process(process);
        } else if let Some(user) = actor.shown_user() {
            self.word(user.shown());
        } else if let Some(app) = actor.shown_app() {
            self.word(app);
        } else {
            return false;
        }
        true
    }

    /// `who -> host:port/proto`
    pub(crate) fn route(&mut self, peers: &Peers, connection: Option<&Connection>) {
        let mut has_start = self.actor();
        if let (false, Some(src)) = (has_start, &peers.src) {
            self.endpoint(src);
            has_start = true;
        }
        let Some(dst) = &peers.dst else { return };
        if has_start {
            self.fixed("->");
        }
        self.endpoint(dst);
        if let Some(protocol) = connection.and_then(Connection::shown_protocol) {
            self.out.push('/');
            push_escaped(self.out, protocol, WORD, Place::Word);
        }
    }

    /// `[key:value key:value]`. A value that stands alone keeps its spaces.
    pub(crate) fn bracket(&mut self, fields: &[(&str, &str)]) {
        let place = if fields.len() == 1 { Place::Free } else { Place::Word };
        let limit = if fields.len() == 1 { LONG } else { WORD };
        self.out.push_str(" [");
        for (at, (key, value)) in fields.iter().enumerate() {
            if at > 0 {
                self.out.push(' ');
            }
            push_escaped(self.out, key, UNMAPPED_VALUE, Place::Word);
            self.out.push(':');
            push_escaped(self.out, value, limit, place);
        }
        self.out.push(']');
    }

    fn limited(&mut self, key: &str, text: &str, limit: usize) {
        self.out.push_str(" [");
        self.out.push_str(key);
        self.out.push(':');
        push_escaped(self.out, text, limit, Place::Free);
        self.out.push(']');
    }

    /// `[policy:NAME engine:TYPE]`, `[reason:...]`, or `[msg:...]` when there is neither.
    pub(crate) fn context(&mut self) {
        let common = self.common;
        let mut shown = true;
        match (common.rule.as_deref().map(super::object::Rule::shown), &common.policy) {
            (Some((name, Some(engine))), _) => {
                self.bracket(&[("policy", name), ("engine", engine)])
            }
            (Some((name, None)), _) => self.bracket(&[("policy", name)]),
            (None, Some(policy)) => self.bracket(&[("policy", policy.shown())]),
            (None, None) => shown = false,
        }
        let denied = matches!(common.verdict, Some(Verdict::Blocked | Verdict::Rejected));
        let failed = common.status.is_some_and(|(_, label)| label == "Failure");
        let reason = common.status_detail.as_ref().or(common.message.as_ref());
        if let (true, Some(reason)) = (denied || failed, reason) {
            self.limited("reason", reason, REASON);
        } else if let (false, Some(message)) = (shown, &common.message) {
            self.limited("msg", message, MESSAGE);
        }
    }

    /// The unmapped values, then the context.
    pub(crate) fn context_with_unmapped(&mut self) {
        self.values(self.common.unmapped().iter().take(UNMAPPED));
        self.context();
    }

    fn values(&mut self, values: impl Iterator<Item = &'a (Text, Value)>) {
        let mut is_first = true;
        for (name, value) in values {
            self.out.push_str(if is_first { " [" } else { " " });
            is_first = false;
            push_escaped(self.out, name, UNMAPPED_VALUE, Place::Word);
            self.out.push(':');
            match value {
                Value::Text(text) => push_escaped(self.out, text, UNMAPPED_VALUE, Place::Word),
                Value::Int(number) => self.out.push_str(&number.to_string()),
                Value::Bool(flag) => self.out.push_str(if *flag { "true" } else { "false" }),
            }
        }
        if !is_first {
            self.out.push(']');
        }
    }

    /// `[type:uid key:value confidence:x]`
    pub(crate) fn finding(&mut self, uid: &str, confidence: Option<Confidence>) {
        self.out.push_str(" [type:");
        push_escaped(self.out, uid, WORD, Place::Word);
        if let Some(confidence) = confidence {
            self.out.push_str(" confidence:");
            self.out.push_str(&confidence.label().to_lowercase());
        }
        self.out.push(']');
        self.values(self.common.unmapped().iter().take(UNMAPPED));
    }

    /// What a change of configuration says: its message, else how it ended.
    pub(crate) fn message_or_status(&mut self) {
        match &self.common.message {
            Some(message) => self.text(message),
            None => self.status(),
        }
    }

    /// The values a change of configuration is known by, and why it failed.
    pub(crate) fn changed(&mut self) {
        let common = self.common;
        self.values(
            CONFIG_FIELDS
                .iter()
                .filter_map(|field| common.unmapped().iter().find(|(name, _)| name == field)),
        );
        let failed = common.status.is_some_and(|(_, label)| label == "Failure");
        if let (true, Some(detail)) = (failed, &common.status_detail) {
            self.limited("reason", detail, REASON);
        }
    }
}
