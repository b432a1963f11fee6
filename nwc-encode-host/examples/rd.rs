use nwc_encode_host::compress::*;
use nwc_encode_host::progress::Silent;
use nwc_encode_host::synthetic::*;
use nwc_encode_host::tensors::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let src = match a[1].as_str() {
        "g" => Source::Gaussian,
        "l" => Source::Laplace,
        "s" => Source::Student5,
        _ => Source::LognormalRows,
    };
    let n: usize = a[2].parse().unwrap();
    let q = a.get(3).map(|s| s.as_str()).unwrap_or("trellis8");
    let w = src.matrix(n, n, 1);
    let mut m = OwnedTensors::default();
    m.push_f32("w", &[n, n], &w);
    for b in [2.0, 3.0, 4.0, 5.0, 6.0] {
        let t = std::time::Instant::now();
        let mut s = Settings::new(Target::Bits(b));
        s.quantiser = quantiser(q).unwrap();
        let mut f = tempfile::tempfile().unwrap();
        let r = match compress(&m, vec![], &s, &Silent, &mut f) {
            Ok(r) => r,
            Err(e) => {
                println!("{e}");
                continue;
            }
        };
        let e = ideal_ecsq_nmse(&w, r.bits_per_weight());
        println!(
            "{b} bpw {:.4} nmse4r {:.4} vs ecsq {:.4} {:?} t {:.2}",
            r.bits_per_weight(),
            r.nmse * 4f64.powf(r.bits_per_weight()),
            r.nmse / e,
            r.split,
            t.elapsed().as_secs_f64()
        );
    }
}
