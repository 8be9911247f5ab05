// Node's cluster as a peer: workers `process.send` records, the primary appends them.
//
//   node cluster.js FILE SIZE WORKERS CALLS
//
// It measures as `cell.py` does: a warm-up, a common start, every call's time, and
// wall time up to the file's last modification. Prints one line of JSON.
"use strict";
const cluster = require("node:cluster");
const fs = require("node:fs");

const WARM_UP = 200;
const [path, size, workersText, callsText] = process.argv.slice(2);
const workers = Number(workersText);
const calls = Number(callsText);
const LARGE = "0123456789 the quick brown fox jumps over the lazy dog "
  .repeat(200)
  .slice(0, 8192);

function deep(levels) {
  if (levels) deep(levels - 1);
  else throw new Error("customer 4711");
}

function fail() {
  try {
    deep(4);
  } catch (error) {
    throw new Error("the order could not be placed", { cause: error });
  }
}

function logger(w) {
  const pid = process.pid;
  const log = (level, message, fields) =>
    process.send({
      timestamp: new Date().toISOString(),
      level,
      worker: pid,
      logger: "bench",
      message,
      pid,
      process: "worker",
      thread: "main",
      ...fields,
    });
  return {
    small: (n) => log("info", `${w} ${n} request handled in 3.2 ms`),
    typical: (n) =>
      log("info", `order ${n} placed`, {
        w,
        n,
        user: "u-184467",
        path: "/api/v2/orders",
        status: 200,
        amount: 129.95,
        cached: false,
      }),
    large: (n) => log("info", LARGE, { w, n }),
    traceback: (n) => {
      try {
        fail();
      } catch (error) {
        const exception = `${error.stack}\nCaused by: ${error.cause.stack}`;
        log("error", `order ${n} failed`, { w, n, exception });
      }
    },
  }[size];
}

function cpu() {
  const { user, system } = process.cpuUsage();
  return user + system;
}

function peak() {
  const status = fs.readFileSync("/proc/self/status", "utf8");
  return Number(/VmHWM:\s+(\d+)/.exec(status)[1]) * 1024;
}

// process.send queues without bound, so a worker yields every 100 calls, as a server does.
function spread(from, to, each, done) {
  let n = from;
  const step = () => {
    const end = Math.min(n + 100, to);
    while (n < end) each(n++);
    if (n < to) setImmediate(step);
    else done();
  };
  step();
}

function worker() {
  const call = logger(Number(process.env.W));
  const spent = new Float64Array(calls);
  let before = 0;
  let callCpu = 0;
  process.on("message", (message) => {
    if (message === "go") {
      before = cpu();
      const clock = process.hrtime.bigint;
      const one = (n) => {
        const start = clock();
        call(n);
        spent[n] = Number(clock() - start);
      };
      spread(0, calls, one, () => {
        callCpu = cpu() - before;
        process.send({ done: Date.now() });
      });
    } else {
      const report = { cpu: callCpu, total: cpu() - before, peak: peak() };
      process.send({ report, spent: Array.from(spent) }, () => process.disconnect());
    }
  });
  spread(-WARM_UP, 0, call, () => process.send({ ready: true }));
}

function primary() {
  const file = fs.createWriteStream(path, { flags: "a" });
  const reports = [];
  let ready = 0;
  let done = 0;
  let lastCall = 0;
  let began = 0;
  let before = 0;
  let spentCpu = 0;
  let wall = 0;
  const all = () => Object.values(cluster.workers);
  const written = (then) =>
    file.writableLength ? setTimeout(written, 2, then) : setTimeout(then, 20);

  function finish() {
    wall = fs.statSync(path).mtimeMs - began;
    for (const each of all()) each.send("report");
  }

  function print() {
    const records = workers * calls;
    const merged = Float64Array.from(reports.flatMap((each) => each.spent)).sort();
    const at = (share) =>
      Number((merged[Math.min(Math.floor(share * merged.length), merged.length - 1)] / 1000).toFixed(2));
    const sum = (name) => reports.reduce((total, each) => total + each.report[name], 0);
    const row = {
      complete: true,
      wall_s: wall / 1000,
      records_s: Math.round(records / (wall / 1000)),
      calls_s: Math.round(records / ((lastCall - began) / 1000)),
      worker_us: sum("total") / records,
      call_cpu_us: sum("cpu") / records,
      consumer_us: spentCpu / records,
      worker_peak: Math.max(...reports.map((each) => each.report.peak)),
      consumer_peak: peak(),
      p50_us: at(0.5),
      p99_us: at(0.99),
      p999_us: at(0.999),
      max_us: at(1),
    };
    process.stdout.write(`${JSON.stringify(row)}\n`);
  }

  cluster.on("message", (_, message) => {
    if (message.ready) {
      if (++ready === workers) {
        written(() => {
          began = Date.now();
          before = cpu();
          for (const each of all()) each.send("go");
        });
      }
    } else if (message.done) {
      lastCall = Math.max(lastCall, message.done);
      if (++done === workers) {
        // Messages of one worker come in order: all records are here by now.
        written(() => {
          spentCpu = cpu() - before;
          finish();
        });
      }
    } else if (message.report) {
      reports.push(message);
      if (reports.length === workers) print();
    } else {
      file.write(`${JSON.stringify(message)}\n`);
    }
  });
  for (let w = 0; w < workers; w++) cluster.fork({ W: w });
}

if (cluster.isPrimary) primary();
else worker();
