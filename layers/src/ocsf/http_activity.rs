//! HTTP Activity, class 4002: requests that passed a proxy.

use serde::ser::SerializeMap;

use super::common::{Common, common_setters, status_setters};
use super::event::{Activity, Class};
use super::object::{
    Connection, Endpoint, HttpRequest, HttpResponse, Traffic, method_activity, value_setters,
};
use super::short::Line;
use super::vocabulary::put;

/// An event of class 4002. Its activity is the method of its request, so the two cannot differ.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpActivity {
    request: HttpRequest,
    response: Option<HttpResponse>,
    src: Option<Endpoint>,
    dst: Option<Endpoint>,
    connection: Option<Connection>,
    traffic: Option<Traffic>,
    common: Common,
}

impl HttpActivity {
    /// A request was made at `time`, in milliseconds since 1970.
    #[must_use]
    pub fn new(request: HttpRequest, time: i64) -> Self {
        Self {
            request,
            response: None,
            src: None,
            dst: None,
            connection: None,
            traffic: None,
            common: Common::new(time),
        }
    }

    value_setters! {
        /// What was answered.
        response: HttpResponse;
        /// Who asked.
        src: Endpoint;
        /// Who was asked.
        dst: Endpoint;
        /// Direction, transport and identifier of the connection.
        connection: Connection;
        /// What passed over it.
        traffic: Traffic;
    }

    common_setters!();
    status_setters!();
}

impl Class for HttpActivity {
    const UID: u32 = 4002;
    const NAME: &'static str = "HTTP Activity";
    const CATEGORY: (u8, &'static str) = (4, "Network Activity");

    fn activity(&self) -> Activity<'_> {
        match method_activity(&self.request.method) {
            Some((id, _, label)) => Activity::known(id, label),
            None => Activity::other(&self.request.method),
        }
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn put_own<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("http_request", &self.request)?;
        put(map, "http_response", self.response.as_ref())?;
        put(map, "src_endpoint", self.src.as_ref())?;
        put(map, "dst_endpoint", self.dst.as_ref())?;
        put(map, "connection_info", self.connection.as_ref())?;
        put(map, "traffic", self.traffic.as_ref())
    }

    fn short(&self, line: &mut Line<'_>) {
        line.head("HTTP", &self.request.method);
        line.verdict();
        line.actor();
        line.word(&self.request.method);
        line.url(&self.request.shown_url());
        if let Some(response) = &self.response {
            line.word(&response.shown_code().to_string());
        }
        line.context_with_unmapped();
    }
}
