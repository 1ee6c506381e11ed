// The list of jobs, and of checkpoints that belong to none.
import { $, make, text, attribute, keyed, choosing, selected } from "./dom.js";
import { bytes, number, plural, rough, seconds } from "./format.js";

const states = {
  STARTING: ["starting", "busy"], RUNNING: ["running", "run"], DUMPING: ["checkpointing", "busy"], RESTORING: ["restoring", "busy"],
  STOPPED: ["stopped", ""], DONE: ["done", ""], FAILED: ["failed", "bad"], KILLED: ["killed", ""], SUSPENDED: ["suspended", ""], BACKOFF: ["will be retried", "bad"],
};

const keyOf = (job, owner) => `${job}/${number(owner)}`;

// groupsOf puts the jobs and the groups of checkpoints together: a job, one that was removed, or what is of none.
export function groupsOf(jobs, groups) {
  const sums = new Map(groups.map(g => [keyOf(g.job ?? "", g.ownerUid), g]));
  const list = jobs.map(job => {
    const key = keyOf(job.spec.name, job.ownerUid), sum = sums.get(key);
    sums.delete(key);
    return { key, name: job.spec.name, owner: number(job.ownerUid), job, sum };
  });
  for (const [key, sum] of sums) list.push({ key, name: sum.job ?? "", owner: number(sum.ownerUid), job: null, sum });
  return list;
}

export const runs = group => ["JOB_STATE_RUNNING", "JOB_STATE_DUMPING"].includes(group.job?.state);

export const title = group => group.name || "Without a job";

const user = group => group.owner ? ` · user ${group.owner}` : "";

export function scheduleOf(job) {
  const schedule = job.spec.schedule ?? {};
  if (schedule.cron) return `cron ${schedule.cron}`;
  const every = seconds(schedule.every);
  return every > 0 ? `every ${rough(every)}` : "no schedule";
}

function plan(group, now) {
  if (!group.job) return (group.name ? "the job was removed" : "checkpoints that were made by hand") + user(group);
  const next = group.job.nextCheckpoint && (Date.parse(group.job.nextCheckpoint) - now) / 1000;
  return scheduleOf(group.job) + (next === undefined || next === "" ? "" : next > 0 ? ` · next in ${rough(next)}` : " · next is due") + user(group);
}

function past(group, now) {
  const sum = group.sum;
  if (!sum) return "no checkpoint yet";
  return `${plural(number(sum.checkpoints), "checkpoint")} · ${bytes(sum.bytes)} · last ${rough((now - Date.parse(sum.newest)) / 1000)} ago`;
}

export function showJobs(groups, chosen, now) {
  $("jobs-empty").hidden = groups.length > 0;
  let count = 0;
  keyed($("jobs"), groups, g => g.key, () => {
    const row = make("div", { role: "option", class: "job", "aria-selected": "false" });
    row.append(make("b"), make("span", { class: "state" }), make("small"), make("small"));
    return row;
  }, (row, group) => {
    const [name, state, when, sum] = row.children;
    attribute(row, "id", `job-${count++}`);
    text(name, title(group));
    const [word, kind] = group.job ? states[(group.job.state ?? "").replace("JOB_STATE_", "")] ?? ["unknown", ""] : ["", ""];
    text(state, word);
    attribute(state, "class", word ? `state ${kind}` : "");
    text(when, plan(group, now));
    text(sum, past(group, now));
  });
  selected($("jobs"), chosen);
}

export function showHead(group) {
  text($("group-title"), group ? title(group) : "");
  text($("group-command"), group?.job ? (group.job.spec.command ?? []).join(" ") : "");
  text($("group-message"), group?.job?.message ?? "");
}

export const choosingJobs = choose => choosing($("jobs"), false, choose);
