// Nothing to run: the test only asks whether the simulator's own sources are compiled.
extern "C" int burrstone_sim_fixture();
int burrstone_sim_fixture() { return 7; }
