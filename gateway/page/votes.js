/** Who has to decide and who has: each stage of a quorum as a chamber that fills, the votes as sentences. */

import { h } from "./dom.js";
import { passage, said } from "./text.js";
import { ago } from "./when.js";

/** What a rule's demands need and have. */
export function demands(ticket) {
  return (ticket.demands ?? []).map((demand) =>
    h(
      "div",
      { class: "demand" },
      h(
        "p",
        {},
        "Asked for by rule ",
        said(demand.rule, { class: "strong" }),
        demand.denials_needed > 1 ? ` · ${demand.denials ?? 0} of ${demand.denials_needed} denials that end it` : "",
      ),
      h(
        "ol",
        { class: "stages" },
        demand.stages.map((stage, number) => chamber(demand, stage, number)),
      ),
      demand.escalate?.length ? h("p", { class: "quiet-text" }, "If nobody decides in time: ", names(demand.escalate)) : null,
    ),
  );
}

/** How far along a ticket is, in a few words. */
export function progress(ticket) {
  const told = (ticket.demands ?? []).map((demand) => {
    if (demand.stage === null || demand.stage === undefined) return "all votes in";
    const stage = demand.stages[demand.stage];
    const where = demand.stages.length > 1 ? `stage ${demand.stage + 1} of ${demand.stages.length}: ` : "";
    return `${where}${demand.have} of ${stage.quorum} ${stage.quorum === 1 ? "vote" : "votes"}`;
  });
  return told.join(", ");
}

function chamber(demand, stage, number) {
  const met = demand.stage === null || demand.stage === undefined || number < demand.stage;
  const have = met ? stage.quorum : number === demand.stage ? demand.have : 0;
  const state = met ? "met" : number === demand.stage ? "open" : "later";
  const cells = Array.from({ length: stage.quorum }, (_each, at) => h("i", { class: at < have ? "full" : "" }));
  return h(
    "li",
    { class: state },
    h("span", { class: "chamber", "aria-hidden": "true" }, cells),
    h(
      "span",
      { class: "words" },
      h("strong", {}, `${have} of ${stage.quorum}`),
      " ",
      stage.approvers.length ? names(stage.approvers) : "anybody who may approve",
      state === "later" ? h("span", { class: "quiet-text" }, " · after that") : null,
    ),
  );
}

function names(approvers) {
  return approvers.map((each, at) => [at ? ", " : "", said(each, { class: "approver" })]);
}

/** The votes on record. */
export function votes(list) {
  if (!list?.length) return h("p", { class: "quiet-text" }, "Nobody has voted yet.");
  return h(
    "ul",
    { class: "votes" },
    list.map((vote) =>
      h(
        "li",
        { class: vote.verdict },
        h(
          "p",
          {},
          said(vote.name || vote.person, { class: "strong" }),
          vote.verdict === "approve" ? " approved " : " denied ",
          ago(vote.at),
          vote.method ? h("span", { class: "quiet-text" }, ` · known by ${vote.method}`) : null,
        ),
        vote.comment ? passage(vote.comment) : null,
      ),
    ),
  );
}
