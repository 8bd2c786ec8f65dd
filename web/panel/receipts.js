// View: the receipts of the last cleanups, the latest first.
import { bytes, clean, clock, seconds } from "../format.js";
import { t } from "../texts.js";

const pairs = (entries) => entries.map(([owner, count]) => `${clean(owner, 40)} ${bytes(count)}`).join(", ");

export const receipts = {
  id: "receipts",
  topics: ["receipts", "connection"],

  data: ({ store }) => store.state.receipts,

  table({ store }) {
    const columns = ["at", "by", "device", "freed", "freedHost", "time", "owners", "holders", "errors"];
    const numbers = new Set(["freed", "freedHost", "time"]);
    const outside = new Set(["by", "owners", "holders", "errors"]);
    return {
      caption: t("receipts.caption"),
      empty: t("receipts.empty"),
      columns: columns.map((key) => ({
        title: t(`receipts.${key}`),
        number: numbers.has(key),
        outside: outside.has(key),
      })),
      rows: [...store.state.receipts].reverse().map((receipt, index) => ({
        key: `${receipt.at} ${index}`,
        title: clean(receipt.text, 600),
        cells: [
          clock(receipt.at),
          clean(receipt.by, 40),
          clean(receipt.device, 20),
          bytes(receipt.freed),
          bytes(receipt.freed_host),
          seconds(receipt.seconds),
          pairs(Object.entries(receipt.by_owner ?? {})),
          pairs((receipt.holders ?? []).map((it) => [it.owner, it.held])),
          (receipt.errors ?? []).map((error) => clean(error, 100)).join("; "),
        ],
      })),
    };
  },
};
