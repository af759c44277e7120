//! What rewinding the files of a container costs, by the number of files that a request changed.
//!
//! usage: rewind_cost [ROUNDS] [FILES_IN_IMAGE] [FILES_SEALED] [SWAP_FROM]
//!
//! Needs root. Starts a process on a real overlay of its own, seals it, and for each number of changed
//! files changes and rewinds ROUNDS times. Prints the least and the median of each step, in microseconds.

#![allow(unreachable_pub, dead_code, reason = "the stand-in for a container is that of the tests")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::Sandbox;
use fs_overlay::FilesReport;
use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let rounds = numbers.next().transpose()?.unwrap_or(20);
    let in_image = numbers.next().transpose()?.unwrap_or(1_000);
    let in_upper = numbers.next().transpose()?.unwrap_or(30);
    let mut options = fs_overlay::Options::default();
    options.swap_from = numbers.next().transpose()?.map_or(options.swap_from, |from| from as u64);
    let sandbox = Sandbox::start(|layers| {
        fs::create_dir_all(layers.bottom.join("lib")).unwrap();
        fs::create_dir_all(layers.bottom.join("tmp")).unwrap();
        for number in 0..in_image {
            fs::write(layers.bottom.join(format!("lib/{number}")), b"of the image").unwrap();
        }
    });
    fs::create_dir(sandbox.at("action"))?;
    for number in 0..in_upper {
        fs::write(sandbox.at(format!("action/{number}")), b"of the action")?;
    }
    let (mut sealed, report) = fs_overlay::seal(sandbox.discover(), &options)?;
    println!("{in_image} files in the image, {in_upper} sealed: {report:?}\n");
    println!("changed   {:>23} {:>15} {:>15} {:>15}", "total: least, median", "examine", "undo", "verify");
    for changed in [0, 1, 10, 20, 50, 100, 1_000, 5_000] {
        let mut all = Vec::new();
        for _ in 0..rounds {
            for number in 0..changed {
                // One of three each: new, of the image, new in a directory of its own.
                match number % 3 {
                    0 => fs::write(sandbox.at(format!("tmp/{number}")), b"secret")?,
                    1 => fs::write(sandbox.at(format!("lib/{}", number % in_image.max(1))), b"secret")?,
                    _ => {
                        fs::create_dir_all(sandbox.at("tmp/new"))?;
                        fs::write(sandbox.at(format!("tmp/new/{number}")), b"secret")?;
                    }
                }
            }
            let started = Instant::now();
            let report = match sealed.rewind() {
                Ok(report) => report,
                Err(quarantine) => {
                    println!("{changed:<9} {quarantine}");
                    return Ok(());
                }
            };
            all.push((started.elapsed(), report));
        }
        let print = |value: &dyn Fn(&(Duration, FilesReport)) -> Duration| {
            let mut all: Vec<u128> = all.iter().map(|one| value(one).as_micros()).collect();
            all.sort_unstable();
            format!("{:>7} {:>7}", all[0], all[all.len() / 2])
        };
        println!(
            "{changed:<9} {:>23} {} {} {}  {}",
            print(&|one| one.0),
            print(&|one| one.1.examine),
            print(&|one| one.1.undo),
            print(&|one| one.1.verify),
            match all.last() {
                Some((_, report)) if report.swapped => "swapped",
                Some((_, report)) => report.unswapped.unwrap_or(""),
                None => "",
            },
        );
    }
    Ok(())
}
