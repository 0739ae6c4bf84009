//! How many instructions a packet costs in user space, counted by valgrind and held against a
//! budget: `cargo bench -p netfilterqueue-benches --bench instructions`.

mod live;

const BATCH: usize = 64;
const PACKETS: usize = 50 * BATCH;

fn main() {
    let case = std::env::args().nth(1).expect("a case");
    match case.as_str() {
        "run_accept" => live::run_accept(),
        "accept" => live::accept(),
        "drop" => live::drop(),
        "accept_exact" => live::accept_exact(),
        "mark" => live::mark(),
        "edit_raw" => live::edit_raw(),
        "edit_complete" => live::edit_complete(),
        _ => panic!(),
    }
}
