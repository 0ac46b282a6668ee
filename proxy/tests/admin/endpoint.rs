//! The admin endpoint of a gateway under test, asked over a plain socket.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;

use serde_json::Value;

use super::up::{PATIENCE, Up};

/// Where to ask.
pub struct Admin {
    pub address: String,
    /// The files of the gateway: its `gateway.toml`, and its state in `s`.
    pub folder: PathBuf,
}

impl Admin {
    pub fn of(up: &Up) -> Self {
        let folder = up.config_home().parent().unwrap().to_owned();
        let address = fs::read_to_string(folder.join("s/admin-address")).unwrap();
        Self { address: address.trim().to_owned(), folder }
    }

    /// The whole answer, head and body.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        socket.write_all(format!("{request}\r\n").as_bytes()).unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        text
    }

    pub fn json(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, &[("host", &self.address)]);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        serde_json::from_str(body).unwrap()
    }

    /// One value of a layer of the plane with this number.
    pub fn value(&self, plane: usize, name: &str, key: &str) -> Value {
        let config = self.json("/config");
        let values = layer(&config, plane, name)["values"].as_array().unwrap().clone();
        values.into_iter().find(|value| value["key"] == key).unwrap()
    }

    /// A counter of the gateway as a whole.
    pub fn counter(&self, name: &str) -> u64 {
        let layers = self.json("/layers");
        let counters = layers["gateway"]["counters"].as_array().unwrap();
        counters.iter().find(|each| each["name"] == name).unwrap()["value"].as_u64().unwrap()
    }
}

pub fn layer<'r>(report: &'r Value, plane: usize, name: &str) -> &'r Value {
    let layers = report["planes"][plane]["layers"].as_array().unwrap();
    layers.iter().find(|layer| layer["name"] == name).unwrap()
}
