mod support;
use support::Puppet;

#[test]
fn globals_are_back() {
    let mut p = Puppet::python();
    p.py("x = 1");
    let mut c = p.checkpoint();
    eprintln!("{:?}", c.report);
    for i in 0..20 {
        p.py("x = 2; y = ['secret'] * 1000; big = bytearray(3_000_000); result = x");
        let r = c.rewind();
        if i % 6 == 0 {
            eprintln!("{r:?}");
        }
        assert_eq!(p.py("result = [x, 'y' in globals()]"), "[1, false]");
        c.rewind();
    }
}
