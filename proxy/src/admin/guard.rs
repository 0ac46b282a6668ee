//! Who may look: programs and browsers of this machine that mean this very endpoint.
//!
//! The port is on the loopback address, which keeps out other machines but not web pages: a page of a stranger can
//! have its own name resolved to 127.0.0.1 (DNS rebinding) and then read answers as its own. Such a request carries the
//! stranger's name in `Host`, so only `localhost`, loopback addresses and the address that the request came in at are
//! taken. The port in `Host` does not matter: it is another one behind a forward.

use std::net::IpAddr;

use http::{Method, Request, StatusCode, header};

use crate::listen::ConnectInfo;

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) text: &'static str,
}

const OTHER_HOST: Refused = Refused {
    status: StatusCode::FORBIDDEN,
    text: "the Host of this request is not this endpoint; use http://127.0.0.1 or http://localhost\n",
};

const ONLY_GET: Refused =
    Refused { status: StatusCode::METHOD_NOT_ALLOWED, text: "only GET is served here\n" };

pub(super) fn check<B>(request: &Request<B>) -> Result<(), Refused> {
    let local = request.extensions().get::<ConnectInfo>().map(|info| info.local.ip());
    let host = host(request).ok_or(OTHER_HOST)?;
    if !is_ours(host, local) {
        return Err(OTHER_HOST);
    }
    if request.method() == Method::GET { Ok(()) } else { Err(ONLY_GET) }
}

/// The host that the request is for: `:authority`, or exactly one `Host`. When there are both they must agree.
fn host<B>(request: &Request<B>) -> Option<&str> {
    let mut headers = request.headers().get_all(header::HOST).iter();
    let (first, second) = (headers.next(), headers.next());
    if second.is_some() {
        return None;
    }
    let header = first.map(|host| host.to_str()).transpose().ok()?;
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    match (authority, header) {
        (Some(one), Some(other)) if one != other => None,
        (one, other) => one.or(other),
    }
}

fn is_ours(host: &str, local: Option<IpAddr>) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    // `user@localhost` is no host.
    if host.contains('@') {
        return false;
    }
    let name = authority.host();
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || Some(ip) == local)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, host: &str) -> Request<()> {
        Request::builder().method(method).uri("/").header(header::HOST, host).body(()).unwrap()
    }

    #[test]
    fn only_names_of_this_machine_are_answered() {
        for host in ["localhost", "LOCALHOST:9", "127.0.0.1:80", "127.1.2.3", "[::1]:9099", "[::1]"]
        {
            assert_eq!(check(&request(Method::GET, host)), Ok(()), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "a@localhost",
            "localhost:80:80",
            "0.0.0.0",
            "[::ffff:8.8.8.8]",
        ] {
            assert_eq!(check(&request(Method::GET, host)), Err(OTHER_HOST), "{host}");
        }
    }

    #[test]
    fn a_host_in_doubt_is_none() {
        assert_eq!(check(&Request::new(())), Err(OTHER_HOST));
        let mut two = request(Method::GET, "localhost");
        two.headers_mut().append(header::HOST, "evil.example".parse().unwrap());
        assert_eq!(check(&two), Err(OTHER_HOST));
        let mut other = request(Method::GET, "localhost");
        *other.uri_mut() = "http://evil.example/".parse().unwrap();
        assert_eq!(check(&other), Err(OTHER_HOST));
    }

    #[test]
    fn the_address_it_came_in_at_is_ours() {
        let info =
            |text: &str| ConnectInfo::plain("10.0.0.9:5".parse().unwrap(), text.parse().unwrap());
        let mut request = request(Method::GET, "10.0.0.1:99");
        request.extensions_mut().insert(info("10.0.0.1:99"));
        assert_eq!(check(&request), Ok(()));
        request.extensions_mut().insert(info("10.0.0.2:99"));
        assert_eq!(check(&request), Err(OTHER_HOST));
    }

    #[test]
    fn nothing_but_get() {
        for method in [Method::POST, Method::HEAD, Method::OPTIONS, Method::CONNECT] {
            assert_eq!(check(&request(method, "localhost")), Err(ONLY_GET));
        }
    }
}
