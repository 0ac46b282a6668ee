//! Where the audit records of the `ocsf` layers go.

use postern_layers::ocsf::{
    Recorder, Source, Writer,
    object::{Device, DeviceKind, Product},
    sink::{FileConfig, FileSink, StdoutSink},
};

use super::StartError;
use crate::config::{AuditSink, Config};

/// Starts the recorder; without an `ocsf` layer, or with the sink `off`, one that forgets.
pub(super) fn start(config: &Config) -> Result<(Recorder, Option<Writer>), StartError> {
    let settings = &config.layers.ocsf;
    if !config.stack.has("ocsf") || settings.sink == AuditSink::Off {
        return Ok((Recorder::disabled(), None));
    }
    let path = match &settings.path {
        Some(path) => path.clone(),
        None => config.gateway.state_dir.join("ocsf.jsonl"),
    };
    let failed = |source| StartError::Audit { path: path.clone(), source };
    let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let product = Product::new("Postern").version(env!("CARGO_PKG_VERSION"));
    let device = Device::new(DeviceKind::Server, hostname.unwrap_or_else(|| "unknown".to_owned()));
    let instance = uuid::Uuid::new_v4().to_string();
    let builder = Recorder::builder(Source::new(product, device).instance(instance));
    let builder = match settings.sink {
        AuditSink::Stdout => builder.sink(StdoutSink::new(settings.format)),
        _ => {
            let mut file = FileConfig::new(&path);
            file.max_bytes = settings.max_bytes;
            file.files = settings.files;
            file.format = settings.format;
            builder.sink(FileSink::open(file).map_err(failed)?)
        }
    };
    let (recorder, writer) = builder.start().map_err(failed)?;
    Ok((recorder, Some(writer)))
}
