//! API Activity, class 6003: calls of the control API.

use serde::ser::SerializeMap;

use super::common::{Common, common_setters, status_setters};
use super::event::{Activity, Class};
use super::object::{Actor, Api, Endpoint, HttpRequest, HttpResponse, Resource, value_setters};
use super::short::Line;
use super::text::MAX_ENTRIES;
use super::vocabulary::{put, vocabulary};

/// Most resources one call may name: more would let one event outgrow its line.
const MAX_RESOURCES: usize = MAX_ENTRIES / 4;

vocabulary! {
    /// What a call does to what it is about.
    ApiVerb {
        /// Makes something.
        Create = 1, "Create";
        /// Looks at something.
        Read = 2, "Read";
        /// Changes something.
        Update = 3, "Update";
        /// Ends something.
        Delete = 4, "Delete";
        /// Something else, such as opening a stream.
        Other = 99, "Other";
    }
}

impl ApiVerb {
    /// Guesses from the first word of a method's name, as most gRPC services name them (`CreateSandbox`, `ListProviders`).
    #[must_use]
    pub fn of_method(name: &str) -> Self {
        const VERBS: [(&[&str], ApiVerb); 4] = [
            (
                &["Create", "Add", "Issue", "Attach", "Submit", "Push", "Report", "Register"],
                ApiVerb::Create,
            ),
            (&["Get", "List", "Watch", "Read", "Describe", "Check", "Health"], ApiVerb::Read),
            (
                &[
                    "Update",
                    "Set",
                    "Put",
                    "Patch",
                    "Rotate",
                    "Refresh",
                    "Renew",
                    "Approve",
                    "Reject",
                    "Configure",
                ],
                ApiVerb::Update,
            ),
            (&["Delete", "Remove", "Revoke", "Detach", "Clear"], ApiVerb::Delete),
        ];
        VERBS
            .iter()
            .find(|(prefixes, _)| prefixes.iter().any(|prefix| starts_with_word(name, prefix)))
            .map_or(ApiVerb::Other, |(_, verb)| *verb)
    }
}

/// True if the camel-case `name` begins with the whole word `word` ("GetX" begins with "Get", "Gettysburg" does not).
fn starts_with_word(name: &str, word: &str) -> bool {
    name.strip_prefix(word).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_lowercase()))
}

/// An event of class 6003.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiActivity {
    verb: ApiVerb,
    api: Api,
    src: Endpoint,
    dst: Option<Endpoint>,
    request: Option<HttpRequest>,
    response: Option<HttpResponse>,
    resources: Vec<Resource>,
    common: Common,
}

impl ApiActivity {
    /// `actor` at `src` made that call at `time`, in milliseconds since 1970.
    #[must_use]
    pub fn new(verb: ApiVerb, api: Api, actor: Actor, src: Endpoint, time: i64) -> Self {
        let mut common = Common::new(time);
        common.actor = Some(Box::new(actor));
        Self {
            verb,
            api,
            src,
            dst: None,
            request: None,
            response: None,
            resources: Vec::new(),
            common,
        }
    }

    value_setters! {
        /// Who was called.
        dst: Endpoint;
        /// The HTTP request that carried the call.
        request: HttpRequest;
        /// The HTTP response that carried the answer.
        response: HttpResponse;
    }

    /// A thing the call is about. Those beyond the eighth are left out.
    #[must_use]
    pub fn resource(mut self, resource: Resource) -> Self {
        if self.resources.len() < MAX_RESOURCES {
            self.resources.push(resource);
        }
        self
    }

    common_setters!();
    status_setters!();
}

impl Class for ApiActivity {
    const UID: u32 = 6003;
    const NAME: &'static str = "API Activity";
    const CATEGORY: (u8, &'static str) = (6, "Application Activity");

    fn activity(&self) -> Activity<'_> {
        Activity::known(self.verb.id(), self.verb.label())
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn put_own<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("api", &self.api)?;
        map.serialize_entry("src_endpoint", &self.src)?;
        put(map, "dst_endpoint", self.dst.as_ref())?;
        put(map, "http_request", self.request.as_ref())?;
        put(map, "http_response", self.response.as_ref())?;
        if !self.resources.is_empty() {
            map.serialize_entry("resources", &self.resources)?;
        }
        Ok(())
    }

    fn short(&self, line: &mut Line<'_>) {
        line.head("API", self.verb.label());
        line.verdict();
        line.status();
        line.actor();
        let (service, operation) = self.api.shown();
        match service {
            Some(service) => line.joined(service, '/', operation),
            None => line.word(operation),
        }
        if let Some(error) = self.api.shown_error() {
            line.bracket(&[("code", error)]);
        }
        line.context_with_unmapped();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_is_a_whole_word() {
        assert_eq!(ApiVerb::of_method("GetSandbox"), ApiVerb::Read);
        assert_eq!(ApiVerb::of_method("Gettysburg"), ApiVerb::Other);
        assert_eq!(ApiVerb::of_method("DeleteSandbox"), ApiVerb::Delete);
        assert_eq!(ApiVerb::of_method("Watch"), ApiVerb::Read);
        assert_eq!(ApiVerb::of_method("RelayStream"), ApiVerb::Other);
    }
}
