//! Faults between values that are each right.

use super::super::{Config, ConnectionLayer, TlsSettings};
use super::Values;

pub(super) fn all(config: &Config, values: &mut Values) {
    ports(config, values);
    admin(config, values);
    tls(config, values);
    users(config, values);
    tokens(values);
}

fn ports(config: &Config, values: &mut Values) {
    let gateway = &config.gateway;
    let mut taken = vec![("bind_address", gateway.bind_address)];
    let side = [
        ("health_bind_address", gateway.health_bind_address),
        ("metrics_bind_address", gateway.metrics_bind_address),
        ("admin_bind_address", gateway.admin_bind_address),
    ];
    for (name, address) in side {
        let Some(address) = address else { continue };
        let clash = taken.iter().find(|(_, other)| {
            let same_ip = address.ip() == other.ip()
                || address.ip().is_unspecified()
                || other.ip().is_unspecified();
            same_ip && address.port() == other.port() && address.port() != 0
        });
        if let Some((other, _)) = clash {
            let message =
                format!("{name} has port {}, as {other} has; give it another port", address.port());
            values.fault_at(&format!("gateway.{name}"), message);
        }
        taken.push((name, address));
    }
}

fn admin(config: &Config, values: &mut Values) {
    let allowed = values.switch("gateway.unsafe_allow_admin_network").unwrap_or(false);
    match config.gateway.admin_bind_address {
        Some(address) if !address.ip().is_loopback() && !allowed => {
            let message = format!(
                "admin_bind_address = {address} shows the configuration to everybody who reaches it; bind to 127.0.0.1, or write unsafe_allow_admin_network = true beside it if you mean it"
            );
            values.fault_at("gateway.admin_bind_address", message);
        }
        _ => {}
    }
}

fn tls(config: &Config, values: &mut Values) {
    let listed = config.stack.connection.contains(&ConnectionLayer::Tls);
    match &config.gateway.tls {
        None => {
            for key in ["cert_path", "key_path", "client_ca_path", "require_client_auth"] {
                let path = format!("gateway.tls.{key}");
                if values.is_given(&path) {
                    let message =
                        format!("{key} is given and disable_tls is true; remove one of the two");
                    values.fault_at(&path, message);
                }
            }
            if listed {
                let message = "disable_tls is true and \"tls\" stands in connection in [openshell.stack]; remove one of the two";
                values.fault_at("gateway.disable_tls", message);
            }
        }
        Some(settings) => {
            if !listed {
                let message = "connection in [openshell.stack] has no \"tls\"; add it, or write disable_tls = true in [openshell.gateway]";
                values.fault_at("", message);
            }
            let required = "gateway.tls.require_client_auth";
            if !settings.has_client_ca() && values.switch(required) == Some(true) {
                let message = "require_client_auth is true and there is no client_ca_path to check against; add one or remove it";
                values.fault_at(required, message);
            }
            let ca = "gateway.tls.client_ca_path";
            if matches!(settings, TlsSettings::Local { .. }) && values.is_given(ca) {
                let message = "client_ca_path goes with cert_path and key_path; without them the gateway has an authority of its own";
                values.fault_at(ca, message);
            }
            if matches!(settings, TlsSettings::Files { .. })
                && values.is_given("gateway.server_sans")
            {
                let message = "server_sans go into a certificate that the gateway makes itself; with cert_path, put them into yours and remove this";
                values.fault_at("gateway.server_sans", message);
            }
        }
    }
}

fn users(config: &Config, values: &mut Values) {
    let gateway = &config.gateway;
    let has_client_ca = gateway.tls.as_ref().is_some_and(TlsSettings::has_client_ca);
    if gateway.users.mtls && !has_client_ca {
        let message = "users are to log in by certificate and no client certificate is asked for; give client_ca_path in [openshell.gateway.tls]";
        values.fault_at("gateway.mtls_auth.enabled", message);
    }
    if !gateway.users.mtls && !gateway.users.allow_unauthenticated {
        let message = "nobody could log in; leave TLS on (users by client certificate), or write allow_unauthenticated_users = true in [openshell.gateway.auth]";
        values.fault_at("gateway.disable_tls", message);
    }
    let allow_network = values.switch("gateway.auth.unsafe_allow_network").unwrap_or(false);
    let network = !gateway.bind_address.ip().is_loopback();
    if gateway.users.allow_unauthenticated && network && !allow_network {
        let message = format!(
            "allow_unauthenticated_users makes everybody who reaches {} an administrator; bind to 127.0.0.1, or write unsafe_allow_network = true beside it if you mean it",
            gateway.bind_address
        );
        values.fault_at("gateway.auth.allow_unauthenticated_users", message);
    }
}

fn tokens(values: &mut Values) {
    let jwt = |name: &str| format!("gateway.gateway_jwt.{name}");
    if !values.is_given(&jwt("signing_key_path")) {
        for name in ["public_key_path", "kid_path"] {
            if values.is_given(&jwt(name)) {
                let message = format!("{name} goes with signing_key_path; add it or remove this");
                values.fault_at(&jwt(name), message);
            }
        }
    }
}
