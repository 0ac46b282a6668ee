//! `exec`: commands that do nothing, at a constant rate.

use std::sync::Arc;

use clap::Args;

use super::{Plant, PlantArgs, RateArgs, arrivals};
use crate::client::Client;
use crate::error::BenchError;
use crate::report::{LatencyReport, Report};

/// Commands.
#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    /// How often.
    #[command(flatten)]
    pub rate: RateArgs,
    /// The program.
    #[arg(long, default_value = "/bin/true")]
    pub program: String,
}

pub(super) async fn run(arguments: &ExecArgs, plant: &PlantArgs) -> Result<Report, BenchError> {
    // A scripted supervisor runs nothing.
    let real = PlantArgs { real: true, ..plant.clone() };
    let built = Plant::build(&real)?;
    let rooms = built.rooms(&real).await?;
    if rooms.is_empty() {
        let problem = "named no sandbox; give --sandbox NAME";
        return Err(BenchError::unexpected("the command line", problem));
    }
    let client = Client::connect(&built.user).await?;
    let program: Arc<str> = arguments.program.as_str().into();
    let latencies = arrivals(&arguments.rate, "commands", |number| {
        let room = &rooms[usize::try_from(number).unwrap_or(usize::MAX) % rooms.len()];
        let (client, name, program) = (client.clone(), Arc::clone(room), Arc::clone(&program));
        async move {
            match client.exec(&name, &[&program]).await? {
                0 => Ok(()),
                code => Err(BenchError::unexpected("a command", format!("exited with {code}"))),
            }
        }
    })
    .await?;
    let mut report = Report::new("exec");
    report.setting("rate", arguments.rate.rate);
    report.setting("program", &arguments.program);
    report.latencies.push(LatencyReport::of("exec", &latencies));
    report.figures.extend(built.memory());
    Ok(report)
}
