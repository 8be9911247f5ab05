// The round trip of a message through Node's own cluster, by size; rows of JSON.
const cluster = require("node:cluster");
const SIZES = [10, 100, 1000, 10000, 100000, 1000000];
if (cluster.isPrimary) {
  const worker = cluster.fork();
  let step = 0, left = 0, began = 0n, payload = "";
  const rounds = (size) => Math.max(50, Math.min(3000, Math.floor(2e7 / size)));
  function next() {
    if (step === SIZES.length) { worker.kill(); return; }
    payload = "x".repeat(SIZES[step]);
    left = rounds(SIZES[step]);
    began = process.hrtime.bigint();
    worker.send({ b: payload });
  }
  worker.on("online", next);
  worker.on("message", () => {
    if (--left > 0) { worker.send({ b: payload }); return; }
    const micros = Number(process.hrtime.bigint() - began) / 1000 / rounds(SIZES[step]);
    console.log(JSON.stringify({ who: "node", bytes: SIZES[step], round_trip_us: Math.round(micros) }));
    step += 1;
    next();
  });
} else {
  process.on("message", (m) => process.send(m));
}
