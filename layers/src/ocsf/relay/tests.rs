use std::sync::mpsc;

use tower::{ServiceExt, service_fn};

use super::*;
use crate::ocsf::object::{Device, DeviceKind, Endpoint, Peers, Product};
use crate::ocsf::{ConnectionActivity, NetworkActivity, Record, Source, Status, Writer};

/// An open relay that knows who asked for it.
#[derive(Debug, PartialEq)]
struct Open {
    noted: Option<&'static str>,
}

struct Audit;

impl AuditRelay<&'static str, Open, &'static str> for Audit {
    type Opening = &'static str;

    fn start(&self, request: &&'static str) -> Option<&'static str> {
        (*request != "unaudited").then_some(*request)
    }

    fn ended(
        &self,
        opening: &'static str,
        outcome: RelayOutcome<'_, Open, &'static str>,
        _after: Duration,
        now: i64,
    ) -> Option<Event> {
        let event =
            |activity| NetworkActivity::new(activity, Peers::to(Endpoint::named(opening)), now);
        Some(match outcome {
            RelayOutcome::Opened(open) => {
                open.noted = Some(opening);
                event(ConnectionActivity::Open).status(Status::Success).into()
            }
            RelayOutcome::Failed(error) => {
                event(ConnectionActivity::Fail).status(Status::Failure).detail(*error).into()
            }
            RelayOutcome::Cancelled => event(ConnectionActivity::Reset).into(),
        })
    }
}

fn rig() -> (OcsfRelayLayer<Audit>, Writer, mpsc::Receiver<String>) {
    let (out, lines) = mpsc::channel();
    let source = Source::new(Product::default(), Device::new(DeviceKind::Server, "gateway"));
    let (recorder, writer) = Recorder::builder(source)
        .sink(move |record: &Record<'_>| {
            let mut line = String::new();
            record.write_short(&mut line);
            out.send(line).map_err(std::io::Error::other)
        })
        .start()
        .unwrap();
    (OcsfRelayLayer::new(Audit, recorder), writer, lines)
}

#[tokio::test]
async fn every_end_of_an_opening_is_told_once() {
    let (layer, writer, lines) = rig();
    let service = layer.layer(service_fn(|request: &'static str| async move {
        match request {
            "fails" => Err("no session"),
            "hangs" => std::future::pending().await,
            _ => Ok(Open { noted: None }),
        }
    }));
    assert_eq!(service.clone().oneshot("opens").await, Ok(Open { noted: Some("opens") }));
    assert_eq!(service.clone().oneshot("fails").await, Err("no session"));
    assert_eq!(service.clone().oneshot("unaudited").await, Ok(Open { noted: None }));
    let mut hanging = Box::pin(service.oneshot("hangs"));
    std::future::poll_fn(|cx| {
        assert!(hanging.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    drop(hanging);
    drop(writer.shutdown(Duration::from_secs(20)).unwrap());
    let lines: Vec<String> = lines.try_iter().collect();
    assert_eq!(
        lines,
        [
            "NET:OPEN [INFO] opens",
            "NET:FAIL [INFO] fails [reason:no session]",
            "NET:RESET [INFO] hangs"
        ]
    );
}
