//! What rewinding a live container costs, by phase.
//!
//! usage: rewind_cost INIT_PID COUNT [MODE] [COMMAND...]
//!
//! MODE: 0 as in production, 1 paranoid, 2 without the census.
//!
//! Checkpoints the container whose process 1 is INIT_PID, then runs COMMAND (a request) and rewinds, COUNT
//! times, and prints the least and the median of each phase. The container is what it was afterwards.

use snapshot::{Keeper, Options, Phase, Pid, RewindReport, Snapshot, Target};
use std::error::Error;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, pid, count, rest @ ..] = args.as_slice() else {
        return Err("usage: rewind_cost INIT_PID COUNT [MODE] [COMMAND...]".into());
    };
    let target = Target::from_init(Pid::from_raw(pid.parse()?))?;
    let mode = |number: &str| rest.first().is_some_and(|mode| mode == number);
    let options = Options { paranoid: mode("1"), census: !mode("2"), ..Options::default() };
    let keeper: Keeper<Option<Snapshot>> = Keeper::start("keeper".to_owned(), || None)?;
    let report = keeper.ask(move |kept| {
        let (snapshot, report) =
            snapshot::checkpoint(&target, &options, &mut || Ok(())).map_err(|e| chain(&e))?;
        *kept = Some(snapshot);
        Ok::<_, String>(report)
    })??;
    for feature in snapshot::probe().features.iter().filter(|feature| feature.name == "census") {
        println!("census: {:?}", feature.state);
    }
    println!("{report:?}");
    let mut reports = Vec::new();
    for _ in 0..count.parse::<usize>()? {
        if let Some((program, arguments)) = rest.get(1..).and_then(|c| c.split_first()) {
            let status = Command::new(program).args(arguments).status()?;
            if !status.success() {
                return Err(format!("{program} ended with {status}").into());
            }
        }
        let rewound = keeper.ask(|kept| {
            let snapshot = kept.as_mut().ok_or("no snapshot")?;
            snapshot.rewind(&mut || Ok(())).map_err(|e| chain(&e))
        });
        reports.push(rewound??);
    }
    let print = |name: &str, value: &dyn Fn(&RewindReport) -> u128| {
        let mut all: Vec<u128> = reports.iter().map(value).collect();
        all.sort_unstable();
        let at = |index: usize| all.get(index).copied().unwrap_or(0);
        println!("{name:<10} {:>8} {:>8} us", at(0), at(all.len() / 2));
    };
    for phase in Phase::ALL {
        print(phase.name(), &|r| r.phase(phase).as_micros());
    }
    print("total", &|r| r.total.as_micros());
    println!("{:?}", reports.last());
    keeper.ask(|kept| kept.take().map_or(Ok(()), |snapshot| snapshot.forget().map_err(|e| chain(&e))))??;
    Ok(())
}

fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
